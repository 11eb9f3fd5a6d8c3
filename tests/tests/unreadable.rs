//! A row that no reader can decode, from before a constraint or without it, stops nothing but its own key.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod relay_support;

use brokers::memory::Broker;
use brokers::postgres::PostgresSubscriber;
use message::{Message, Subscriber};
use outbox::replay::{Filter, Replay, ReplayError, ReplaySettings, preview};
use outbox::{Policies, Policy, admin, enqueue_all_at};
use relay_support::{
    PATIENCE, firsts, message, numbers, patient, settings, start, until, until_published, write,
};
use sqlx::{AssertSqlSafe, Executor, PgPool};
use tests::Database;
use tokio_util::sync::CancellationToken;

/// What a row has in place of a message, by its key, and what is said of it.
const FAULTS: [(&str, &str, &str); 6] = [
    ("late", "enqueued_at", "'infinity'::timestamptz"),
    ("never", "occurred_at", "'-infinity'::timestamptz"),
    ("far", "occurred_at", "'294276-12-31 00:00:00+00'::timestamptz"),
    ("list", "headers", "'[1]'::jsonb"),
    ("number", "headers", r#"'{"a": 1}'::jsonb"#),
    ("nobody", "kind", "null::text"),
];

/// A log without constraints, in which each of these rows stands before another message of its key.
async fn with_faults(claim: &str) -> Database {
    let database = Database::new(claim).await;
    let pool = database.pool();
    pool.execute(
        "alter table outbox.message drop constraint message_enqueued_at, drop constraint message_occurred_at,
             drop constraint message_headers, alter kind drop not null",
    )
    .await
    .unwrap();
    for (key, column, value) in FAULTS {
        let mut columns = vec![("kind", "'order.changed'"), ("payload", "'1'")];
        columns.retain(|(name, _)| *name != column);
        columns.push((column, value));
        let (names, values): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
        let insert = format!(
            "insert into outbox.message (id, correlation, source, topic, key, {})
             select id, id, '/test', 'orders', '{key}', {} from gen_random_uuid() id",
            names.join(", "),
            values.join(", ")
        );
        pool.execute(AssertSqlSafe(insert)).await.unwrap();
        write(pool, &[message(key, 2)]).await;
    }
    write(pool, &[message("good", 1), message("good", 2)]).await;
    database
}

async fn parked(pool: &PgPool) -> Vec<admin::HeldKey> {
    let held = admin::held_keys(pool, "default").await.unwrap();
    held.into_iter().filter(admin::HeldKey::is_parked).collect()
}

fn of<'h>(held: &'h [admin::HeldKey], key: &str) -> &'h admin::HeldKey {
    held.iter().find(|held| held.key.as_deref() == Some(key)).expect("it is held")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_cannot_be_read_is_parked_and_others_go_on() {
    let database = with_faults("unreadable_relay").await;
    let pool = database.pool();
    let broker = Broker::new();
    let relay = start(pool, broker.publisher(), settings());
    until_published(&broker, 2).await;
    assert_eq!(numbers(&broker, "good"), [1, 2]);
    until("parked", || async { parked(pool).await.len() == FAULTS.len() }).await;
    let held = parked(pool).await;
    for (key, column, _) in FAULTS {
        let held = of(&held, key);
        assert_eq!((held.messages, held.attempts), (2, 0), "{key}");
        assert!(held.last_error.contains(&format!("{column}: ")), "{key}: {}", held.last_error);
    }
    // As the log has them, for a person to see.
    let same = "select count(*) from outbox.held_message h join outbox.message m using (position)
        where h.enqueued_at = m.enqueued_at and h.occurred_at = m.occurred_at and h.payload = m.payload
            and h.headers is not distinct from m.headers and h.kind is not distinct from m.kind";
    assert_eq!(sqlx::query_scalar::<_, i64>(same).fetch_one(pool).await.unwrap(), 12);
    admin::status(pool).await.unwrap();

    // What is no part of the message stands in its way no longer than a person lets it; what is parks again.
    for key in ["late", "never", "list"] {
        let position = of(&held, key).position;
        assert!(admin::redrive(pool, "default", position, "ada", None).await.unwrap());
    }
    until_published(&broker, 4).await;
    assert_eq!(numbers(&broker, "late"), [1, 2]);
    until("parked again", || async { parked(pool).await.len() == FAULTS.len() - 1 }).await;
    for (key, column) in [("never", "occurred_at"), ("list", "headers")] {
        let held = parked(pool).await;
        assert!(!of(&held, key).last_error.is_empty(), "{column}");
        let position = of(&held, key).first_position.unwrap();
        assert!(admin::skip(pool, "default", position, "ada", "no message").await.unwrap());
    }
    until_published(&broker, 6).await;
    relay.stop().await.unwrap();
    assert_eq!((numbers(&broker, "never"), numbers(&broker, "list")), (vec![2], vec![2]));
}

/// A row that is no message, of a topic.
async fn write_unreadable(pool: &PgPool, topic: &str, key: &str) {
    let insert = "insert into outbox.message (id, correlation, source, topic, kind, key, payload, headers)
        select id, id, '/test', $1, 'order.changed', $2, '1', '[1]' from gen_random_uuid() id";
    sqlx::query(insert).bind(topic).bind(key).execute(pool).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_cannot_be_read_parks_though_its_destination_is_down_and_nothing_stands_still() {
    let database = Database::new("unreadable_down").await;
    let pool = database.pool();
    pool.execute("alter table outbox.message drop constraint message_headers").await.unwrap();
    let broker = Broker::new();
    broker.close_destination("metrics");
    let of_metrics =
        |key: &str, number: usize| Message::new("metrics", "k", number.to_string()).with_key(key);
    let relay = start(pool, broker.publisher(), settings());
    // The outage is known, and keys wait for its end, before the rows come: first of a key, behind others, and of no other key.
    write(pool, &[of_metrics("waits", 1), message("good", 1)]).await;
    let held = async || admin::held_keys(pool, "default").await.unwrap();
    until("keys wait for the destination", || async {
        held().await.iter().any(|held| held.destination.as_deref() == Some("metrics"))
    })
    .await;
    write_unreadable(pool, "metrics", "bad").await;
    write(pool, &[of_metrics("bad", 2)]).await;
    write_unreadable(pool, "metrics", "waits").await;
    write(pool, &[of_metrics("waits", 3), of_metrics("free", 1), message("good", 2)]).await;
    until("others go on", || async { numbers(&broker, "good") == [1, 2] }).await;
    until("the row is parked", || async { parked(pool).await.len() == 1 }).await;
    let row = parked(pool).await.remove(0);
    assert_eq!((row.key.as_deref(), row.attempts, row.destination), (Some("bad"), 0, None));
    until("what is behind a key that waits is copied", || async {
        held().await.iter().any(|held| held.key.as_deref() == Some("waits") && held.messages == 3)
    })
    .await;

    broker.open_destination("metrics");
    until("what can be read is published", || async {
        numbers(&broker, "free") == [1] && numbers(&broker, "waits") == [1]
    })
    .await;
    until("the other row is parked", || async { parked(pool).await.len() == 2 }).await;
    for held in parked(pool).await {
        assert!(held.last_error.contains("cannot be read as a message"), "{held:?}");
        let first = held.first_position.unwrap();
        assert!(admin::skip(pool, "default", first, "ada", "no message").await.unwrap());
    }
    until("their keys are free", || async { held().await.is_empty() }).await;
    relay.stop().await.unwrap();
    assert_eq!((numbers(&broker, "bad"), numbers(&broker, "waits")), (vec![2], vec![1, 3]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_gives_up_what_cannot_be_read_as_it_does_what_is_rejected() {
    let database = with_faults("unreadable_replay").await;
    let pool = database.pool();
    let broker = Broker::new();
    let mut settings = ReplaySettings::default();
    let replay =
        || Replay::new("again", pool.clone(), broker.publisher(), "ada").with_filter(Filter::default());
    let seen = preview(pool, "again", Some(&Filter::default())).await.unwrap();
    assert_eq!(seen.messages, 14);
    let stopped = replay().with_settings(settings.clone()).run(CancellationToken::new()).await;
    assert!(matches!(stopped, Err(ReplayError::Rejected { position: 1, .. })), "{stopped:?}");
    settings.skip_rejected = true;
    let replayed = replay().with_settings(settings).run(CancellationToken::new()).await.unwrap();
    assert_eq!(replayed.skipped, 6);
    assert_eq!(firsts(&numbers(&broker, "good")), [1, 2]);
    let reasons =
        "select count(*) from outbox.audit where action = 'skip' and reason like '%cannot be read%'";
    assert_eq!(sqlx::query_scalar::<_, i64>(reasons).fetch_one(pool).await.unwrap(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_of_the_postgres_broker_is_given_what_cannot_be_read_and_all_others() {
    let database = with_faults("unreadable_group").await;
    let pool = outbox::pool_options().connect(database.url()).await.unwrap();
    let mut subscriber = PostgresSubscriber::new(pool, "g".parse().unwrap());
    let (mut malformed, mut received): (Vec<String>, Vec<Message>) = (Vec::new(), Vec::new());
    while malformed.len() + received.len() < 14 {
        let deliveries = tokio::time::timeout(PATIENCE, subscriber.receive(10)).await.expect("it goes on");
        for delivery in deliveries.unwrap() {
            match &delivery.received {
                Ok(message) => received.push(message.clone()),
                Err(what) => malformed.push(what.reason.to_string()),
            }
            delivery.acknowledge().await.unwrap();
        }
    }
    subscriber.close().await;
    assert_eq!((malformed.len(), received.len()), (6, 8));
    let named = |reason: &str| malformed.iter().filter(|said| said.contains(reason)).count();
    assert_eq!((named("time"), named("headers"), named("type"), named("row")), (2, 2, 1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduled_message_that_the_log_does_not_take_keeps_no_other_from_it() {
    let database = Database::new("unreadable_scheduled").await;
    let pool = database.pool();
    pool.execute("alter table outbox.scheduled_message drop constraint message_topic, drop constraint scheduled_message_due_at")
        .await
        .unwrap();
    for (topic, due) in [("no topic", "now() - interval '1 hour'"), ("orders", "'infinity'")] {
        let insert = format!(
            "insert into outbox.scheduled_message (due_at, occurred_at, id, correlation, source, topic, kind, key, payload)
             select {due}, now(), id, id, '/test', '{topic}', 'k', 'bad', '1' from gen_random_uuid() id"
        );
        pool.execute(AssertSqlSafe(insert)).await.unwrap();
    }
    let mut tx = pool.begin().await.unwrap();
    let due = chrono::Utc::now() - chrono::TimeDelta::minutes(1);
    let messages: Vec<Message> = (1..=20).map(|number| message("good", number)).collect();
    enqueue_all_at(&mut tx, &messages, due).await.unwrap();
    outbox::commit(tx).await.unwrap();
    let broker = Broker::new();
    let relay = start(pool, broker.publisher(), settings());
    until_published(&broker, 20).await;
    relay.stop().await.unwrap();
    assert_eq!(numbers(&broker, "good"), (1..=20).collect::<Vec<_>>());
    // Where an operator sees them.
    let left = admin::scheduled(pool).await.unwrap();
    assert_eq!((left.waiting, left.next_due.is_some()), (2, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_consumer_holds_and_cannot_read_is_shown_as_it_came() {
    let database = Database::new("unreadable_held").await;
    let pool = database.pool();
    pool.execute(
        "insert into inbox.held_key (consumer, state, attempts, last_error) values ('c', 'parked', 1, 'no');
         insert into inbox.held_message (consumer, hold, message_id, topic, kind, occurred_at, headers, payload)
         select 'c', hold, gen_random_uuid(), 'orders', 'k', moment, headers, 'body'
         from inbox.held_key, (values ('infinity'::timestamptz, null::jsonb), (now(), '[1]'), (now(), null)) v (moment, headers)",
    )
    .await
    .unwrap();
    let hold: i64 = sqlx::query_scalar("select hold from inbox.held_key").fetch_one(pool).await.unwrap();
    let mut connection = pool.acquire().await.unwrap();
    let messages = inbox::admin::held_messages(&mut connection, "c", hold, 10).await.unwrap();
    let read: Vec<bool> = messages.iter().map(|message| message.received.is_ok()).collect();
    assert_eq!(read, [false, false, true]);
    let unreadable = messages[0].received.as_ref().unwrap_err();
    assert_eq!((&*unreadable.destination, &*unreadable.payload), ("orders", &b"body"[..]));
}

#[tokio::test]
async fn the_log_takes_no_time_that_a_reader_cannot_read() {
    let database = Database::new("unreadable_checked").await;
    for (column, constraint) in
        [("enqueued_at", "message_enqueued_at"), ("occurred_at", "message_occurred_at")]
    {
        for moment in ["infinity", "-infinity", "294276-01-01 00:00:00+00", "0044-03-15 00:00:00+00 BC"] {
            let insert = format!(
                "insert into outbox.message (id, correlation, source, topic, kind, payload, {column})
                 select id, id, '/test', 'orders', 'k', '', '{moment}' from gen_random_uuid() id"
            );
            let error = database.pool().execute(AssertSqlSafe(insert)).await.unwrap_err();
            let refused = error.as_database_error().unwrap().constraint().unwrap().to_owned();
            assert_eq!(refused, constraint, "{moment}");
        }
    }
}

/// Also one with a key that is longer than an index takes: it is parked without it, and keeps no other waiting.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_no_message_is_parked_whatever_its_key() {
    let database = Database::new("unreadable_key").await;
    let pool = database.pool();
    let broker = Broker::new();
    let relay = start(pool, broker.publisher(), patient());
    sqlx::raw_sql(
        "alter table outbox.message drop constraint message_key, drop constraint message_occurred_at;
        insert into outbox.message (id, correlation, occurred_at, source, topic, kind, key, payload)
        select gen_random_uuid(), gen_random_uuid(), 'infinity', '/x', 'here', 'k',
            (select string_agg(md5(random()::text), '') from generate_series(1, 200)), ''",
    )
    .execute(pool)
    .await
    .unwrap();
    write(pool, &[message("a", 1)]).await;
    until("others go on", || async { numbers(&broker, "a") == [1] }).await;
    until("parked", || async {
        let held = admin::held_keys(pool, "default").await.unwrap();
        held.first().is_some_and(|held| held.is_parked())
    })
    .await;
    relay.stop().await.unwrap();
}

/// A rule of the database's owner on the table of held keys stops the key that breaks it, and no other.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_whose_hold_the_owner_refuses_is_parked_without_its_key_in_order_and_keeps_no_other_waiting() {
    let database = Database::new("unreadable_rule").await;
    let pool = database.pool();
    pool.execute("alter table outbox.held_key add constraint no_bad_key check (key <> 'bad')").await.unwrap();
    let broker = Broker::new();
    broker.reject_key("bad");
    broker.reject_key("worse");
    let relay = start(pool, broker.publisher(), settings());
    write(pool, &[message("bad", 1), message("worse", 1), message("good", 1)]).await;
    let held = || async { admin::held_keys(pool, "default").await.unwrap() };
    until("both are held", || async { held().await.len() == 2 }).await;
    until("the good one goes on", || async { numbers(&broker, "good") == [1] }).await;
    relay.stop().await.unwrap();
    let parked = held().await;
    let parked = parked.iter().find(|held| held.key.is_none()).unwrap();
    assert!(parked.is_parked() && parked.last_error.contains("no_bad_key"), "{parked:?}");
    // The next session knows the key from its copy.
    broker.accept_key("bad");
    let relay = start(pool, broker.publisher(), settings());
    write(pool, &[message("bad", 2), message("good", 2)]).await;
    until("others go on", || async { numbers(&broker, "good") == [1, 2] }).await;
    until("the second waits behind the first", || async {
        held().await.iter().any(|held| held.position == parked.position && held.messages == 2)
    })
    .await;
    admin::redrive(pool, "default", parked.position, "ada", None).await.unwrap();
    until("both are published", || async { numbers(&broker, "bad") == [1, 2] }).await;
    relay.stop().await.unwrap();
}

/// What came of an attempt is refused by a rule of the owner's, too: by its row, here for the destination that it waits for.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_whose_attempt_cannot_be_recorded_is_parked_with_the_reason_and_others_are_recorded() {
    let database = Database::new("unreadable_attempt").await;
    let pool = database.pool();
    let broker = Broker::new();
    broker.reject_key("bad");
    broker.reject_key("worse");
    let mut settings = patient();
    settings.max_attempts = 1000;
    let relay = start(pool, broker.publisher(), settings);
    write(pool, &[message("bad", 1), message("worse", 1)]).await;
    let held = || async { admin::held_keys(pool, "default").await.unwrap() };
    let of = async |key: &str| held().await.into_iter().find(|held| held.key.as_deref() == Some(key));
    until("both are held", || async { held().await.len() == 2 }).await;
    let rule =
        "alter table outbox.held_key add constraint no_wait check (destination is null or key <> 'bad')";
    pool.execute(rule).await.unwrap();
    broker.close_destination("orders");
    broker.accept_key("bad");
    broker.accept_key("worse");
    until("it is parked", || async {
        of("bad").await.is_some_and(|held| held.is_parked() && held.last_error.contains("no_wait"))
    })
    .await;
    until("the other one waits", || async {
        of("worse").await.is_some_and(|held| held.destination.as_deref() == Some("orders"))
    })
    .await;
    broker.open_destination("orders");
    until("the other one is published", || async { numbers(&broker, "worse") == [1] }).await;
    relay.stop().await.unwrap();
}

/// And what its topic's policy gives up, where that cannot be written down.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_end_cannot_be_recorded_is_parked_with_the_reason_and_others_go_on() {
    let database = Database::new("unreadable_end").await;
    let pool = database.pool();
    pool.execute("alter table outbox.audit add constraint no_skip check (action <> 'skip')").await.unwrap();
    let broker = Broker::new();
    broker.reject_key("bad");
    let mut settings = patient();
    settings.policies = Policies::default().with("orders".parse().unwrap(), Policy::Skip);
    let relay = start(pool, broker.publisher(), settings);
    write(pool, &[message("bad", 1)]).await;
    until("it is parked", || async {
        let held = admin::held_keys(pool, "default").await.unwrap();
        held.first().is_some_and(|held| held.is_parked() && held.last_error.contains("no_skip"))
    })
    .await;
    write(pool, &[message("good", 1)]).await;
    until_published(&broker, 1).await;
    relay.stop().await.unwrap();
}
