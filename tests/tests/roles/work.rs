//! What each role does at its work, and what it may not.

use sqlx::{AssertSqlSafe, Executor};

use super::{attempt, with_roles};

/// What each role does all day, in order: within one transaction, rolled back at the end.
const WORK: [(&str, &[&str]); 7] = [
    ("outbox_service", &[
        "select outbox.enqueue('t', 'k', '\"secret\"', key => 'k', headers => '{\"a\": \"b\"}', lock_key => true)",
        "insert into outbox.message (id, correlation, causation, occurred_at, source, topic, kind, key, headers, payload)
         select outbox.uuid_v7(), outbox.uuid_v7(), null, now(), source, 't', 'k', null, null, '' from outbox.origin",
        "select max(version), max(serves) from outbox.schema_version",
        "select outbox.cancel(outbox.enqueue_at(now(), 't', 'k', '\"secret\"', key => 'k'))",
        "insert into outbox.scheduled_message (due_at, id, correlation, causation, occurred_at, source, topic, kind, key,
             headers, payload)
         select now(), outbox.uuid_v7(), outbox.uuid_v7(), null, now(), source, 't', 'k', null, null, '' from outbox.origin",
    ]),
    ("outbox_publisher", &[
        "select max(version), max(serves) from outbox.schema_version",
        "insert into outbox.message (id, correlation, causation, occurred_at, source, topic, kind, key, headers, payload)
         select gen_random_uuid(), gen_random_uuid(), null, now(), source, 't', 'k', null, null, '' from outbox.origin",
    ]),
    ("outbox_relay", &[
        "select max(version), max(serves) from outbox.schema_version",
        "select system_identifier from outbox.cluster intersect select system_identifier from pg_control_system()",
        "insert into outbox.relay (name) values ('r') on conflict (name) do nothing",
        "select shards, state from outbox.relay where name = 'r' for share",
        "insert into outbox.process (id, relay, label, build, expires_at) values (gen_random_uuid(), 'r', '', '', now())",
        "update outbox.process set expires_at = now()",
        "insert into outbox.cursor (relay, shard, era, seen, seen_l)
         select 'r', 0, 1, pg_current_snapshot(), last_value from outbox.message_position_seq",
        "select position, key, headers, payload from outbox.message
         where pg_visible_in_snapshot(tx, pg_current_snapshot())",
        "select pg_current_wal_insert_lsn(), pg_current_wal_flush_lsn(), pg_logical_emit_message(true, 'outbox', '')",
        "update outbox.cursor set after = 1, epoch = epoch + 1, recorded_at = now() where relay = 'r' and shard = 0",
        "insert into outbox.held_key (relay, position, slot, state, attempts, next_attempt_at, last_error)
         values ('r', 1, 1, 'retrying', 1, now(), '')",
        "insert into outbox.held_message (relay, position, held, id, correlation, occurred_at, enqueued_at, source, topic,
             kind, payload)
         values ('r', 1, 1, gen_random_uuid(), gen_random_uuid(), now(), now(), '/x', 't', 'k', '')
         on conflict (relay, position) do nothing",
        "update outbox.held_key set attempts = 2",
        "select from outbox.held_key for share",
        "delete from outbox.held_message",
        "delete from outbox.held_key",
        "insert into outbox.settled_message (relay, position, held, slot, tx)
         select 'r', position, 1, slot, tx from outbox.message on conflict (relay, position) do nothing",
        "delete from outbox.settled_message where relay = 'r'",
        "insert into outbox.group_topic (relay, pattern) values ('r', 'orders.>') on conflict (relay, pattern) do nothing",
        "insert into outbox.waiting_process (id, relay, label, reason, expires_at)
         values (gen_random_uuid(), 'r', '', '', now())
         on conflict (id) do update set reason = excluded.reason, expires_at = excluded.expires_at",
        "delete from outbox.waiting_process",
        "insert into outbox.audit (who, action, relay, position, message_id, reason)
         values ('relay r', 'skip', 'r', 1, gen_random_uuid(), 'rejected')",
        "delete from outbox.process",
        "select due_at, number from outbox.scheduled_message limit 1 for update skip locked",
        "with gone as (delete from outbox.scheduled_message returning *)
         insert into outbox.message (id, correlation, causation, occurred_at, source, topic, kind, key, headers, payload)
         select id, correlation, causation, occurred_at, source, topic, kind, key, headers, payload from gone",
        "truncate outbox.message_3",
    ]),
    ("outbox_consumer", &[
        "select max(version), max(serves) from inbox.schema_version",
        "insert into inbox.consumer (name, horizon) values ('c', '7 days')
         on conflict (name) do update set horizon = excluded.horizon",
        "insert into inbox.consumer_kind (consumer, kind) values ('c', 'k')
         on conflict (consumer, kind) do update set last_seen_at = clock_timestamp()",
        "select kind from inbox.consumer_kind",
        "insert into inbox.process (id, consumer, expires_at) values (gen_random_uuid(), 'c', now())",
        "update inbox.process set expires_at = now()",
        "delete from inbox.process",
        "insert into inbox.quarantine (consumer, message_id) values ('c', gen_random_uuid()) on conflict do nothing",
        "delete from inbox.quarantine",
        "insert into inbox.message (message_id, source_hash, slot, consumer)
         select id, inbox.source_hash('/a'), inbox.slot(id), 'c' from gen_random_uuid() as id on conflict do nothing returning message_id",
        "insert into inbox.held_key (consumer, key, state, attempts, next_attempt_at, last_error)
         values ('c', 'k', 'retrying', 1, now(), '')",
        "insert into inbox.held_message (consumer, hold, message_id, payload)
         select consumer, hold, gen_random_uuid(), '' from inbox.held_key",
        "update inbox.held_key set attempts = 2, state = 'parked', next_attempt_at = null",
        "select payload, headers from inbox.held_message",
        "delete from inbox.held_message",
        "delete from inbox.held_key",
        "update inbox.retention set floor = now()",
        "insert into inbox.emptied_day (slot, day) values (0, '2026-01-01') on conflict (slot) do update set day = excluded.day",
        "lock table inbox.message_0 in access exclusive mode",
        "delete from inbox.message_32",
        "truncate inbox.message_0",
    ]),
    ("outbox_operator", &[
        "select relay, key, state, last_error from outbox.held_key",
        "select payload, headers from outbox.held_message",
        "select id, key, topic from outbox.message",
        "select last_value from outbox.message_position_seq",
        "update outbox.relay set state = 'paused', changes = changes + 1",
        "insert into outbox.audit (who, action, relay, position, message_id, reason)
         values ('ada', 'pause', null, null, null, null) returning message_id",
        "select who, role, action from outbox.audit",
        "insert into outbox.replay (name, era, seen, after, to_position) values ('r', 1, pg_current_snapshot(), 0, 9)",
        "update outbox.replay set epoch = epoch + 1, expires_at = now(), after = 1, published = 1, state = 'cancelled'",
        "select id, key, topic from outbox.message_3",
        "update outbox.held_key set state = 'retrying', attempts = 0, next_attempt_at = now()",
        "insert into outbox.settled_message (relay, position, held, slot, tx)
         select 'r', m.position, 1, m.slot, m.tx from outbox.message m on conflict (relay, position) do nothing",
        "delete from outbox.settled_message where relay = 'r'",
        "delete from outbox.held_message",
        "delete from outbox.held_key",
        "select payload, headers from inbox.held_message",
        "update inbox.held_message set late = true",
        "update inbox.held_key set state = 'retrying', attempts = 0, next_attempt_at = now()",
        "select hold from inbox.held_key for update",
        "insert into inbox.message (message_id, received_at, source_hash, slot, consumer)
         select id, now(), inbox.source_hash('/a'), inbox.slot(id), 'c' from gen_random_uuid() as id on conflict do nothing",
        "insert into inbox.audit (who, action, consumer, hold, message_id, reason) values ('ada', 'redrive', 'c', 1, null, null)",
        "insert into inbox.audit (who, action, consumer, kind, reason) values ('ada', 'forget_kind', 'c', 'k', 'gone')",
        "select kind, last_seen_at from inbox.consumer_kind",
        "delete from inbox.consumer_kind",
        "select who, role, action from inbox.audit",
        "delete from inbox.held_message",
        "delete from inbox.held_key",
    ]),
    ("outbox_monitor", &[
        "select max(version) from outbox.schema_version union select max(version) from inbox.schema_version",
        "select last_value, is_called from outbox.message_position_seq",
        "select count(*), max(position), min(enqueued_at) from outbox.message",
        "select c.relay, pg_snapshot_xmax(c.seen), p.label from outbox.cursor c left join outbox.process p on p.id = owner",
        "select relay, state, last_error from outbox.held_key",
        "select relay, position from outbox.settled_message",
        "select relay, label, reason from outbox.waiting_process",
        "select relay, key, kind from outbox.held_message",
        "select at, who, role, reason from outbox.audit union all select at, who, role, reason from inbox.audit",
        "select consumer, count(*) from inbox.message group by consumer",
        "select consumer, key, kind, late from inbox.held_message",
        "select horizon, floor, day from inbox.consumer, inbox.retention, inbox.emptied_day",
    ]),
    ("outbox_owner", &[
        "alter table outbox.message add column later text",
        "create index later on inbox.held_message (kind)",
        "create or replace function inbox.later() returns integer language sql as 'select 1'",
        "update outbox.origin set source = '/orders'",
    ]),
];

#[tokio::test]
async fn each_role_can_do_its_work() {
    let database = with_roles("role_work").await;
    let mut connection = database.connect().await;
    for (role, work) in WORK {
        let begin = format!("begin; set local role {role}");
        connection.execute(AssertSqlSafe(begin)).await.expect("a role");
        for &sql in work {
            connection.execute(sql).await.unwrap_or_else(|error| panic!("{role}: {sql}: {error}"));
        }
        connection.execute("rollback").await.expect("a rollback");
    }
}

/// Refusals that matter most, each by SQLSTATE: what the rights above rule out, said as an attack.
const DENIED: [(&str, &str); 50] = [
    ("outbox_service", "select payload from outbox.message"),
    (
        "outbox_service",
        "insert into outbox.message (tx, id, correlation, source, topic, kind, payload)
        values ('3', gen_random_uuid(), gen_random_uuid(), '/x', 't', 'k', '')",
    ),
    (
        "outbox_service",
        "insert into outbox.message (position, id, correlation, source, topic, kind, payload)
        overriding system value values (1, gen_random_uuid(), gen_random_uuid(), '/x', 't', 'k', '')",
    ),
    (
        "outbox_service",
        "insert into outbox.message (enqueued_at, id, correlation, source, topic, kind, payload)
        values (now(), gen_random_uuid(), gen_random_uuid(), '/x', 't', 'k', '')",
    ),
    (
        "outbox_service",
        "insert into outbox.message_0 (id, correlation, source, topic, kind, payload)
        values (gen_random_uuid(), gen_random_uuid(), '/x', 't', 'k', '')",
    ),
    ("outbox_service", "update outbox.message set payload = ''"),
    ("outbox_service", "delete from outbox.message"),
    ("outbox_service", "truncate outbox.message"),
    ("outbox_service", "select setval('outbox.message_position_seq', 1)"),
    ("outbox_service", "update outbox.origin set source = '/somebody-else'"),
    ("outbox_service", "select from outbox.cursor"),
    ("outbox_service", "select from inbox.message"),
    ("outbox_service", "select payload from outbox.scheduled_message"),
    ("outbox_service", "update outbox.scheduled_message set due_at = now()"),
    // It gives up one message by its id, and not all of them, nor does it keep others from their table.
    ("outbox_service", "select id from outbox.scheduled_message"),
    ("outbox_service", "delete from outbox.scheduled_message"),
    ("outbox_service", "lock table outbox.scheduled_message in access exclusive mode"),
    ("outbox_service", "lock table outbox.message in access exclusive mode"),
    ("outbox_publisher", "select id from outbox.message"),
    ("outbox_publisher", "select outbox.cancel(gen_random_uuid())"),
    ("outbox_publisher", "lock table outbox.message in access exclusive mode"),
    ("outbox_relay", "update outbox.scheduled_message set payload = ''"),
    ("outbox_relay", "select outbox.enqueue('t', 'k', '')"),
    ("outbox_relay", "update outbox.message set payload = ''"),
    ("outbox_relay", "delete from outbox.message"),
    ("outbox_relay", "truncate outbox.message"),
    ("outbox_relay", "select setval('outbox.message_position_seq', 1)"),
    ("outbox_relay", "update outbox.held_message set payload = ''"),
    ("outbox_consumer", "select from outbox.message"),
    ("outbox_consumer", "update inbox.message set consumer = 'another'"),
    ("outbox_consumer", "update inbox.held_message set payload = ''"),
    ("outbox_operator", "select payload from outbox.message"),
    ("outbox_operator", "update outbox.cursor set after = 0"),
    // What was enqueued is what is published: a message that is held is not edited by anybody.
    ("outbox_operator", "update outbox.held_message set payload = ''"),
    ("outbox_operator", "update outbox.held_message set topic = 'elsewhere'"),
    ("outbox_operator", "insert into outbox.held_message select * from outbox.held_message"),
    ("outbox_operator", "update inbox.held_message set payload = ''"),
    // Nor what was decided, nor in whose name the server saw it.
    ("outbox_operator", "update outbox.audit set who = 'nobody'"),
    ("outbox_operator", "delete from outbox.audit"),
    (
        "outbox_operator",
        "insert into outbox.audit (who, role, action) values ('ada', 'somebody else', 'pause')",
    ),
    ("outbox_operator", "delete from inbox.audit"),
    ("outbox_relay", "select from outbox.audit"),
    // A replay is a person's to ask for, and to read payloads is another right.
    ("outbox_operator", "select payload from outbox.message_3"),
    ("outbox_operator", "update outbox.replay set name = 'another'"),
    ("outbox_operator", "delete from outbox.replay"),
    ("outbox_relay", "update outbox.replay set after = 0"),
    ("outbox_monitor", "update outbox.replay set state = 'cancelled'"),
    ("outbox_monitor", "select payload from outbox.held_message"),
    ("outbox_monitor", "select headers from outbox.message"),
    ("outbox_monitor", "select headers from inbox.held_message"),
];

#[tokio::test]
async fn no_role_reaches_beyond_its_work() {
    let database = with_roles("role_denied").await;
    let mut connection = database.connect().await;
    for (role, sql) in DENIED {
        assert_eq!(attempt(&mut connection, role, sql).await, Err("42501".to_owned()), "{role}: {sql}");
    }
    // Nobody, not even a superuser, sets a slot: the table computes it.
    let slot = "insert into outbox.message (slot, id, correlation, source, topic, kind, payload)
        values (1, gen_random_uuid(), gen_random_uuid(), '/x', 't', 'k', '')";
    assert_eq!(attempt(&mut connection, "outbox_service", slot).await, Err("428C9".to_owned()));
    // Whoever has no role, has nothing: not a table, not a function.
    for sql in
        ["select from outbox.origin", "select outbox.uuid_v7()", "select inbox.slot(gen_random_uuid())"]
    {
        assert_eq!(
            attempt(&mut connection, "pg_signal_backend", sql).await,
            Err("42501".to_owned()),
            "{sql}"
        );
    }
}
