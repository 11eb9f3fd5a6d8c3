//! The least-privilege roles: each can do its work and nothing else.

#![allow(clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

#[path = "roles/work.rs"]
mod work;

use migrations::Schema;
use sqlx::{AssertSqlSafe, Executor, PgConnection};
use tests::Database;

/// A migrated database with the roles. They belong to the server, so they stay when the database goes.
async fn with_roles(claim: &str) -> Database {
    let database = Database::new(claim).await;
    database.pool().execute(sqlx::raw_sql(migrations::roles())).await.expect("the roles");
    database
}

/// Runs one statement as a role in a transaction of its own that is rolled back; answers the SQLSTATE of a refusal.
async fn attempt(connection: &mut PgConnection, role: &str, sql: &str) -> Result<(), String> {
    let begin = format!("begin; set local role {role}");
    connection.execute(AssertSqlSafe(begin)).await.expect("a role");
    let result = connection.execute(AssertSqlSafe(sql.to_owned())).await;
    connection.execute("rollback").await.expect("a rollback");
    match result {
        Ok(_) => Ok(()),
        Err(error) => {
            Err(error.as_database_error().and_then(|error| error.code()).expect("a SQLSTATE").into_owned())
        }
    }
}

/// Rights on tables as letters (a insert, r select, w update, d delete, D truncate; lower case and `*`: on some columns
/// only), on functions X, on schemas U. Of leaves, one that speaks for all.
const RIGHTS: &str = "
    with role (name) as (
        values ('outbox_service'), ('outbox_publisher'), ('outbox_relay'), ('outbox_consumer'), ('outbox_operator'), ('outbox_monitor')
    ), relation as (
        select c.oid, case when i.inhparent is null then c.oid::regclass::text else i.inhparent::regclass || ' leaf' end
            as name
        from pg_class c left join pg_inherits i on i.inhrelid = c.oid
        where c.relnamespace in ('outbox'::regnamespace, 'inbox'::regnamespace) and c.relkind in ('r', 'p')
    ), granted as (
        select role.name as role, relation.name as object, string_agg(letter || case
            when has_table_privilege(role.name, oid, privilege) then '' else '*' end, '' order by letter) as rights
        from role cross join relation
        cross join (values ('a', 'insert'), ('r', 'select'), ('w', 'update'), ('d', 'delete'), ('D', 'truncate'),
            ('x', 'references'), ('t', 'trigger')) as asked (letter, privilege)
        where has_table_privilege(role.name, oid, privilege)
            or letter in ('a', 'r', 'w', 'x') and has_any_column_privilege(role.name, oid, privilege)
        group by role.name, relation.name, oid
        union
        select role.name, c.oid::regclass::text, string_agg(privilege, ' ' order by privilege)
        from role cross join pg_class c cross join (values ('select'), ('usage'), ('update')) as asked (privilege)
        where c.relnamespace in ('outbox'::regnamespace, 'inbox'::regnamespace) and c.relkind = 'S'
            and has_sequence_privilege(role.name, c.oid, privilege)
        group by role.name, c.oid
        union
        select role.name, p.oid::regproc || '()', 'X' from role cross join pg_proc p
        where p.pronamespace in ('outbox'::regnamespace, 'inbox'::regnamespace)
            and has_function_privilege(role.name, p.oid, 'execute')
        union
        select role.name, schema, string_agg(left(privilege, 1), '' order by privilege)
        from role cross join (values ('outbox'), ('inbox')) as schemas (schema)
        cross join (values ('usage'), ('create')) as asked (privilege)
        where has_schema_privilege(role.name, schema, privilege) group by role.name, schema
    )
    select role || ': ' || object || ' ' || rights from granted";

const EXPECTED: &str = "
outbox_consumer: inbox u
outbox_consumer: inbox.consumer arw
outbox_consumer: inbox.consumer_kind arw
outbox_consumer: inbox.emptied_day arw
outbox_consumer: inbox.held_key adrw
outbox_consumer: inbox.held_message adr
outbox_consumer: inbox.message ar
outbox_consumer: inbox.message leaf Ddr
outbox_consumer: inbox.process adrw
outbox_consumer: inbox.quarantine adr
outbox_consumer: inbox.retention rw
outbox_consumer: inbox.schema_version r
outbox_consumer: inbox.slot() X
outbox_consumer: inbox.source_hash() X
outbox_monitor: inbox u
outbox_monitor: inbox.audit r
outbox_monitor: inbox.consumer r
outbox_monitor: inbox.consumer_kind r
outbox_monitor: inbox.emptied_day r
outbox_monitor: inbox.held_key r
outbox_monitor: inbox.held_message r*
outbox_monitor: inbox.message r
outbox_monitor: inbox.process r
outbox_monitor: inbox.quarantine r
outbox_monitor: inbox.retention r
outbox_monitor: inbox.schema_version r
outbox_monitor: outbox u
outbox_monitor: outbox.audit r
outbox_monitor: outbox.cluster r
outbox_monitor: outbox.cursor r
outbox_monitor: outbox.group_topic r
outbox_monitor: outbox.held_key r
outbox_monitor: outbox.held_message r*
outbox_monitor: outbox.message r*
outbox_monitor: outbox.message_position_seq select
outbox_monitor: outbox.origin r
outbox_monitor: outbox.process r
outbox_monitor: outbox.relay r
outbox_monitor: outbox.replay r
outbox_monitor: outbox.scheduled_message r*
outbox_monitor: outbox.schema_version r
outbox_monitor: outbox.settled_message r
outbox_monitor: outbox.upkeep r
outbox_monitor: outbox.waiting_process r
outbox_operator: inbox u
outbox_operator: inbox.audit a*r
outbox_operator: inbox.consumer r
outbox_operator: inbox.consumer_kind dr
outbox_operator: inbox.emptied_day r
outbox_operator: inbox.held_key drw*
outbox_operator: inbox.held_message drw*
outbox_operator: inbox.message a*r
outbox_operator: inbox.process r
outbox_operator: inbox.quarantine r
outbox_operator: inbox.retention r
outbox_operator: inbox.schema_version r
outbox_operator: inbox.slot() X
outbox_operator: inbox.source_hash() X
outbox_operator: outbox u
outbox_operator: outbox.audit a*r
outbox_operator: outbox.cluster r
outbox_operator: outbox.cursor r
outbox_operator: outbox.group_topic r
outbox_operator: outbox.held_key drw*
outbox_operator: outbox.held_message dr
outbox_operator: outbox.message leaf r*
outbox_operator: outbox.message r*
outbox_operator: outbox.message_position_seq select
outbox_operator: outbox.origin r
outbox_operator: outbox.process r
outbox_operator: outbox.relay rw*
outbox_operator: outbox.replay arw*
outbox_operator: outbox.scheduled_message r*
outbox_operator: outbox.schema_version r
outbox_operator: outbox.settled_message adr
outbox_operator: outbox.upkeep r
outbox_operator: outbox.waiting_process r
outbox_publisher: outbox u
outbox_publisher: outbox.message a*r*
outbox_publisher: outbox.origin r
outbox_publisher: outbox.schema_version r
outbox_relay: outbox u
outbox_relay: outbox.audit a*
outbox_relay: outbox.cluster r
outbox_relay: outbox.cursor arw
outbox_relay: outbox.group_topic a*r
outbox_relay: outbox.held_key adrw
outbox_relay: outbox.held_message adr
outbox_relay: outbox.message a*r
outbox_relay: outbox.message leaf Dr
outbox_relay: outbox.message_position_seq select
outbox_relay: outbox.origin r
outbox_relay: outbox.process adrw
outbox_relay: outbox.relay arw*
outbox_relay: outbox.replay r
outbox_relay: outbox.scheduled_message drw*
outbox_relay: outbox.schema_version r
outbox_relay: outbox.settled_message adr
outbox_relay: outbox.upkeep rw*
outbox_relay: outbox.waiting_process adrw
outbox_service: outbox u
outbox_service: outbox.cancel() X
outbox_service: outbox.enqueue() X
outbox_service: outbox.enqueue_at() X
outbox_service: outbox.message a*
outbox_service: outbox.message_fault() X
outbox_service: outbox.origin r
outbox_service: outbox.scheduled_message a*
outbox_service: outbox.schema_version r
outbox_service: outbox.text_fault() X
outbox_service: outbox.uuid_v7() X
";

#[tokio::test]
async fn each_role_has_these_rights_and_no_others() {
    let database = with_roles("rights").await;
    let mut rights: Vec<String> =
        sqlx::query_scalar(RIGHTS).fetch_all(database.pool()).await.expect("the rights");
    rights.sort();
    assert_eq!(rights.join("\n"), EXPECTED.trim());
}

/// A message that bears the mark of a replay, which an inbox may be told to treat in another way.
const MARKED: &str = "insert into outbox.message (id, correlation, source, topic, kind, headers, payload)
    values (gen_random_uuid(), gen_random_uuid(), '/x', 't', 'k', '{\"outbox-replay\": \"monthly\"}', '')";

#[tokio::test]
async fn a_service_marks_no_message_as_a_replay_and_a_publisher_does() {
    let database = with_roles("role_marks").await;
    let mut connection = database.connect().await;
    let scheduled = MARKED
        .replace("outbox.message (", "outbox.scheduled_message (due_at, occurred_at, ")
        .replace("values (", "values (now(), now(), ");
    for sql in [MARKED, &scheduled] {
        let refused = attempt(&mut connection, "outbox_service", sql).await;
        assert_eq!(refused, Err("23514".to_owned()), "{sql}");
    }
    for role in ["outbox_publisher", "outbox_relay", "outbox_owner"] {
        assert_eq!(attempt(&mut connection, role, MARKED).await, Ok(()), "{role}");
    }
}

#[tokio::test]
async fn a_services_messages_stand_where_the_log_puts_them() {
    let database = with_roles("where_it_stands").await;
    let mut connection = database.connect().await;
    // What a writer may say leaves transaction, position and time to the log.
    connection
        .execute(
            "set role outbox_service;
             select outbox.enqueue('t', 'k', '');
             insert into outbox.message (id, correlation, source, topic, kind, payload)
             values (gen_random_uuid(), gen_random_uuid(), '/x', 't', 'k', '')",
        )
        .await
        .expect("two messages");
    let positions: Vec<i64> = sqlx::query_scalar("select position from outbox.message order by tx")
        .fetch_all(database.pool())
        .await
        .expect("the log");
    assert_eq!(positions, [1, 2]);
}

#[tokio::test]
async fn either_schema_may_be_absent_and_twice_is_as_good_as_once() {
    for present in [&[][..], &[Schema::Outbox], &[Schema::Inbox]] {
        let database = Database::empty("one_schema").await;
        for schema in present {
            schema.migrate(&mut database.connect().await).await.expect("a schema");
        }
        for _ in 0..2 {
            database.pool().execute(sqlx::raw_sql(migrations::roles())).await.expect("the roles");
        }
    }
}

#[tokio::test]
async fn the_owner_migrates_without_a_right_to_create_schemas() {
    let database = Database::empty("owner").await;
    database.pool().execute(sqlx::raw_sql(migrations::roles())).await.expect("the roles");
    let mut connection = database.connect().await;
    connection
        .execute(
            "create schema outbox authorization outbox_owner; create schema inbox authorization outbox_owner;
             set role outbox_owner",
        )
        .await
        .expect("an owner");
    for schema in [Schema::Outbox, Schema::Inbox] {
        schema.migrate(&mut connection).await.expect("the owner's schema");
    }
    database.pool().execute(sqlx::raw_sql(migrations::roles())).await.expect("the roles again");
    for schema in [Schema::Outbox, Schema::Inbox] {
        schema.migrate(&mut connection).await.expect("nothing to do");
    }
}

#[tokio::test]
async fn a_service_may_check_its_schema_and_not_migrate_it() {
    let database = with_roles("service_checks").await;
    let mut connection = database.connect().await;
    connection.execute("set role outbox_service").await.expect("a role");
    Schema::Outbox.check(&mut connection).await.expect("a schema that fits");
    Schema::Outbox.migrate(&mut connection).await.expect_err("no right to migrate");
}
