//! What the names in our SQL mean where others may create objects in a schema of the path (`public` before PostgreSQL 15): what
//! they put there is never called by a relay, a consumer or an administrator.
//!
//! Statements that run in a transaction of ours find names in `pg_catalog` alone. The others run under the path of the role or of
//! the service's transaction. In them each function that takes an argument names its schema, and each operator is one that
//! `pg_catalog` has for exactly these types: an operator for other types in `public` would otherwise fit better.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod inbox_support;
mod relay_support;
#[path = "names/scan.rs"]
mod scan;

use std::collections::BTreeSet;
use std::time::Duration;

use brokers::memory::Broker;
use inbox::Consumer;
use inbox_support::{KIND, effect, placed};
use migrations::Schema;
use outbox::replay::Replay;
use outbox::{admin, enqueue_all, enqueue_all_at};
use relay_support::{message, start, until, until_published};
use sqlx::{AssertSqlSafe, Executor, PgConnection};
use tests::Database;
use tests::source::{files, root};

/// Run only in a transaction of ours whose path is fixed (`statement.rs`, `trace/load.rs`), and never in a service's. What is not
/// here, and each new statement, is held to calling nothing of others under any path.
const FIXED_PATH: [&str; 40] = [
    "cli/src/trace/sql/logged.sql",
    "outbox/src/admin/sql/doctor_facts.sql",
    "outbox/src/admin/sql/doctor_old.sql",
    "outbox/src/admin/sql/draw_above.sql",
    "outbox/src/admin/sql/lock_timeout.sql",
    "outbox/src/admin/sql/no_jit.sql",
    "outbox/src/admin/sql/open_era.sql",
    "outbox/src/admin/sql/skip.sql",
    "outbox/src/admin/sql/status.sql",
    "outbox/src/admin/sql/survey.sql",
    "outbox/src/fleet/sql/has_work.sql",
    "outbox/src/log/sql/append.sql",
    "outbox/src/log/sql/create_cursors.sql",
    "outbox/src/log/sql/hold_keys.sql",
    "outbox/src/log/sql/hold_messages.sql",
    "outbox/src/log/sql/hold_unreadable.sql",
    "outbox/src/log/sql/join.sql",
    "outbox/src/log/sql/position_at.sql",
    "outbox/src/log/sql/preflight.sql",
    "outbox/src/log/sql/record.sql",
    "outbox/src/log/sql/renew.sql",
    "outbox/src/log/sql/rest.sql",
    "outbox/src/log/sql/settle_delivered.sql",
    "outbox/src/relay/sql/begin_attempts.sql",
    "outbox/src/relay/sql/failed.sql",
    "outbox/src/relay/sql/settle.sql",
    "outbox/src/replay/sql/claim.sql",
    "outbox/src/replay/sql/count.sql",
    "outbox/src/replay/sql/create.sql",
    "outbox/src/replay/sql/page.sql",
    "outbox/src/replay/sql/record.sql",
    "outbox/src/replay/sql/renew.sql",
    "outbox/src/schedule/sql/move.sql",
    "outbox/src/upkeep/sql/hold.sql",
    "outbox/src/upkeep/sql/interpret.sql",
    "outbox/src/upkeep/sql/leaf.sql",
    "outbox/src/upkeep/sql/patience.sql",
    "outbox/src/upkeep/sql/pins.sql",
    "outbox/src/upkeep/sql/summarize.sql",
    "outbox/src/upkeep/sql/want_kept.sql",
];

/// Run in databases that the program has just made for itself.
const OWN_DATABASE: [&str; 2] = ["cli/src/bench/sql/", "example-services/src/demo/sql/"];

/// Each statement that may run under any path, with the name of its file and its parts filled in.
fn statements() -> Vec<(String, String)> {
    let mut statements = Vec::new();
    for part in ["outbox", "inbox", "brokers", "migrations", "cli", "example-services"] {
        for file in files(&root().join(part).join("src"), ".sql") {
            let name = file.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            let fixed = FIXED_PATH.contains(&&*name);
            let own = OWN_DATABASE.iter().any(|own| name.starts_with(own));
            // The services' tables are made here as a part of the test.
            if !fixed && !own && !name.ends_with("/schema.sql") {
                let sql = std::fs::read_to_string(&file).unwrap();
                let sql = sql
                    .replace("/*leaf*/", "3")
                    .replace("/*leaves*/", "3, 4")
                    .replace("{slot}", "3")
                    .replace("{day}", "inbox.message_3")
                    .replace("{days}", "inbox.message_3, inbox.message_4");
                statements.push((name, sql));
            }
        }
    }
    assert!(statements.len() > 80, "{}", statements.len());
    statements
}

/// The types of our columns and expressions, and those that they become.
const TYPES: &str = r#"array['smallint', 'integer', 'bigint', 'numeric', 'double precision', 'text', 'name', '"char"', 'boolean',
    'uuid', 'timestamptz', 'interval', 'jsonb', 'jsonpath', 'bytea', 'xid8', 'xid', 'pg_snapshot', 'oid', 'regclass', 'tid',
    'pg_lsn', 'smallint[]', 'integer[]', 'bigint[]', 'text[]', 'uuid[]', 'xid8[]', 'oid[]']"#;

const OPERATORS: &str = "array['=', '<>', '<', '<=', '>', '>=', '+', '-', '*', '/', '%', '&', '|', '<<', '>>', '||', '~', '!~', '~~',
    '->', '->>', '@>', '&&']";

/// Puts a trap into `public` for each operator and pair of types that `pg_catalog` has none for, and for each function of it
/// that takes no argument, one that may be left out.
async fn set_traps(connection: &mut PgConnection) {
    let traps = format!(
        "do $$
        declare
            one text; other text; operator text;
        begin
            foreach one in array {TYPES} loop foreach other in array {TYPES} loop
                execute format('create function public.sprung(%s, %s) returns boolean language sql
                    as ''select 1 / 0 = 1''', one, other);
                foreach operator in array {OPERATORS} loop
                    if to_regoperator(format('pg_catalog.%s(%s, %s)', operator, one, other)) is null then
                        execute format('create operator public.%s (leftarg = %s, rightarg = %s, function = public.sprung)',
                            operator, one, other);
                    end if;
                end loop;
            end loop; end loop;
            for one in
                select distinct proname from pg_catalog.pg_proc
                where pronamespace = 'pg_catalog'::regnamespace and pronargs = 0 and prokind = 'f'
            loop
                execute format('create function public.%I(integer default 0) returns integer language sql
                    as ''select 1 / 0''', one);
            end loop;
        end
        $$"
    );
    connection.execute(AssertSqlSafe(traps)).await.expect("the traps");
}

/// What of `public` a statement calls, with parameters of these types.
async fn sprung(
    connection: &mut PgConnection,
    sql: &str,
    types: &[String],
) -> Result<Vec<String>, sqlx::Error> {
    let create =
        format!("create function pg_temp.probe({}) returns void begin atomic {sql}; end", types.join(", "));
    connection.execute("begin").await?;
    let created = connection.execute(AssertSqlSafe(create)).await;
    let found = match created {
        Ok(_) => {
            connection.execute("set local search_path = pg_catalog").await?;
            sqlx::query_scalar(
                "select distinct pg_describe_object(refclassid, refobjid, refobjsubid) from pg_depend
                where classid = 'pg_proc'::regclass and objid = (
                        select max(oid) from pg_proc where proname = 'probe' and pronamespace = pg_my_temp_schema())
                    and (refclassid = 'pg_proc'::regclass and refobjid in (
                            select oid from pg_proc where pronamespace = 'public'::regnamespace)
                        or refclassid = 'pg_operator'::regclass and refobjid in (
                            select oid from pg_operator where oprnamespace = 'public'::regnamespace))",
            )
            .persistent(false)
            .fetch_all(&mut *connection)
            .await
        }
        Err(error) => Err(error),
    };
    connection.execute("rollback").await?;
    found
}

/// The types of a statement's parameters, as the server infers them where no trap is set.
async fn types(connection: &mut PgConnection, sql: &str) -> Vec<String> {
    connection.execute(AssertSqlSafe(format!("prepare probe as {sql}"))).await.expect(sql);
    let types = "select parameter_types::text[] from pg_prepared_statements where name = 'probe'";
    let types = sqlx::query_scalar(types).persistent(false).fetch_one(&mut *connection).await.unwrap();
    connection.execute("deallocate probe").await.unwrap();
    types
}

/// Functions of `pg_catalog` that take anything, in the form for what our statements give them, which fits better.
const POLYMORPHIC: [&str; 20] = [
    "format(text, integer, numeric)",
    "format(text, integer)",
    "format(text, text)",
    "format(text, text, text)",
    "unnest(uuid[])",
    "unnest(text[])",
    "unnest(xid8[])",
    "array_agg(smallint)",
    "array_agg(bigint)",
    "array_agg(text)",
    "count(bigint)",
    "generate_series(integer, bigint)",
    "make_interval(secs text)",
    "make_interval(secs numeric)",
    "setval(text, bigint)",
    "uuid_hash_extended(uuid, integer)",
    "hashtextextended(text, integer)",
    "jsonb_path_exists(jsonb, text)",
    "regexp_replace(name, text, text, text)",
    "encode(bytea, name)",
];

/// Migrated, with roles, by an administrator in whose path the traps stand.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_that_others_put_into_public_is_called_by_a_migration_a_relay_a_consumer_or_an_administrator()
{
    let database = Database::empty("names_at_work").await;
    let (pool, mut connection) = (database.pool(), database.connect().await);
    set_traps(&mut connection).await;
    for trap in POLYMORPHIC {
        let create = format!("create function public.{trap} returns integer language sql as 'select 1 / 0'");
        connection.execute(AssertSqlSafe(create)).await.expect(trap);
    }
    for schema in [Schema::Outbox, Schema::Inbox] {
        schema.migrate(&mut connection).await.expect("it migrates");
    }
    connection.execute(sqlx::raw_sql(migrations::roles())).await.expect("the roles");
    connection
        .execute("create table effect (number bigserial primary key, message uuid, note text)")
        .await
        .unwrap();

    let broker = Broker::new();
    broker.reject_key("held");
    let relay = start(pool, broker.publisher(), relay_support::settings());
    let mut tx = pool.begin().await.unwrap();
    outbox::lock_keys(&mut tx, &["a", "b"]).await.unwrap();
    enqueue_all(&mut tx, &[message("a", 1), message("held", 1), placed("", "2")]).await.unwrap();
    let due = enqueue_all_at(&mut tx, &[message("b", 1), message("c", 1)], chrono::Utc::now()).await.unwrap();
    assert!(outbox::cancel(&mut tx, due[1]).await.unwrap());
    outbox::commit(tx).await.unwrap();
    until_published(&broker, 3).await;
    until("the key is parked", || async {
        admin::held_keys(pool, "default").await.unwrap().iter().any(admin::HeldKey::is_parked)
    })
    .await;
    broker.accept_key("held");
    let held = admin::held_keys(pool, "default").await.unwrap();
    assert!(admin::redrive(pool, "default", held[0].position, "ada", None).await.unwrap());
    until_published(&broker, 4).await;
    admin::pause(pool, "default", "ada", None).await.unwrap();
    admin::resume(pool, "default", "ada", None).await.unwrap();
    admin::status(pool).await.expect("status");
    admin::scheduled(pool).await.expect("scheduled");
    admin::audit(pool, None, 10).await.expect("audit");
    admin::examine(pool, Duration::from_secs(60), Duration::from_secs(86_400)).await.expect("examine");
    admin::survey(pool).await.expect("survey");
    outbox::prune(pool).await.expect("prune");
    relay.stop().await.expect("it ends in order");
    let replay =
        Replay::new("again", pool.clone(), broker.publisher(), "ada").with_filter(Default::default());
    replay.run(tokio_util::sync::CancellationToken::new()).await.expect("a replay");

    let consumer = Consumer::new("c", pool.clone(), broker.subscriber("c", ["orders"]));
    let consumer = inbox_support::start(consumer.on(KIND, effect));
    let published = [::message::Outgoing { destination: "orders".into(), message: placed("k", "3").into() }];
    for result in ::message::publish_all(&broker.publisher(), &published).await {
        result.unwrap();
    }
    until("it has its effect", || async {
        sqlx::query_scalar::<_, i64>("select count(*) from effect").fetch_one(pool).await.unwrap() > 0
    })
    .await;
    consumer.stop().await;
    inbox::prune(pool).await.expect("prune");
    inbox::admin::status(&mut connection).await.expect("status");
    inbox::admin::held_keys(&mut connection, None, 10).await.expect("held keys");
}

#[tokio::test]
async fn no_statement_calls_what_others_have_put_into_the_path() {
    let clean = Database::new("names_clean").await;
    let trapped = Database::new("names_trapped").await;
    let (mut clean, mut connection) = (clean.connect().await, trapped.connect().await);
    for service in ["order", "stock", "payment", "shipping"] {
        let file = root().join(format!("example-services/src/{service}/schema.sql"));
        let schema = std::fs::read_to_string(file).unwrap();
        for connection in [&mut clean, &mut connection] {
            connection.execute(AssertSqlSafe(schema.clone())).await.expect("a service's tables");
        }
    }
    set_traps(&mut connection).await;
    // The traps are traps.
    for risky in [
        "select current_database() || 'x'::text",
        "select 1::bigint & 1",
        "select 1::bigint * interval '1 second'",
    ] {
        let found = sprung(&mut connection, risky, &[]).await;
        assert!(found.is_err() || !found.unwrap().is_empty(), "{risky}");
    }
    let mut faults = Vec::new();
    let mut checked = 0;
    for (name, sql) in statements() {
        if !scan::is_query(&sql) {
            continue;
        }
        let types = types(&mut clean, sql.trim_end_matches([';', '\n'])).await;
        match sprung(&mut connection, sql.trim_end_matches([';', '\n']), &types).await {
            Ok(found) if found.is_empty() => checked += 1,
            Ok(found) => faults.push(format!("{name}: calls {}", found.join(", "))),
            Err(error) => faults.push(format!("{name}: {error}")),
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(checked > 60, "{checked}");
}

#[tokio::test]
async fn each_function_that_takes_an_argument_names_its_schema() {
    let database = Database::new("names_functions").await;
    let known: BTreeSet<String> = sqlx::query_scalar(
        "select distinct proname::text from pg_catalog.pg_proc where pronamespace = 'pg_catalog'::regnamespace",
    )
    .fetch_all(database.pool())
    .await
    .unwrap()
    .into_iter()
    .collect();
    for (risky, call) in [
        ("select format('%s', 1)", "format"),
        ("select count(m.id) from outbox.message m", "count"),
        ("select * from unnest($1::uuid[]) as m", "unnest"),
    ] {
        assert_eq!(scan::unqualified_calls(risky, &known), [call], "{risky}");
    }
    let mut faults = Vec::new();
    for (name, sql) in statements() {
        for call in scan::unqualified_calls(&sql, &known) {
            faults.push(format!("{name}: {call}"));
        }
    }
    assert!(faults.is_empty(), "each with its schema, please:\n{}", faults.join("\n"));
}

/// What is sent outside a transaction that `statement.rs` begins, and writes no table: what a pool or a connection of the service
/// is asked about itself, what reads one row that never changes, and a wakeup.
const SENT_ALONE: [(&str, &str); 8] = [
    ("outbox/src/commit.rs", "executor.fetch_one(sqlx::raw_sql(AssertSqlSafe(sql)))"),
    ("outbox/src/doorbell/listen.rs", "fetch_one(sqlx::raw_sql(MARKED))"),
    ("outbox/src/doorbell/listen.rs", "pool.execute(sqlx::raw_sql(NOTIFY))"),
    ("outbox/src/doorbell/mod.rs", "connection.execute(sqlx::raw_sql(NOTIFY))"),
    ("outbox/src/log/connection.rs", "self.connection.fetch_all(sqlx::raw_sql(sql))"),
    ("outbox/src/pool.rs", "connection.fetch_one(sqlx::raw_sql(OUTSIDE_TRANSACTION))"),
    ("migrations/src/check.rs", "conn.fetch_one(sqlx::raw_sql(AssertSqlSafe(exists)))"),
    ("migrations/src/check.rs", "conn.fetch_one(sqlx::raw_sql(sql))"),
];

/// Whether a line sends a statement on a pool, or as text on anything but a transaction.
fn is_sent_alone(code: &str) -> bool {
    let sends = [".execute(", ".fetch(", ".fetch_one(", ".fetch_all(", ".fetch_optional(", ".execute_many("];
    sends.iter().any(|send| {
        code.match_indices(send).any(|(at, _)| {
            let (on, sent) = (&code[..at], &code[at + send.len()..]);
            let argument = &sent[..sent.find([')', ',']).unwrap_or(sent.len())];
            let is_text = sent.starts_with("sqlx::raw_sql(")
                || sent.starts_with("AssertSqlSafe(")
                || sent.contains("include_str!");
            on.ends_with("pool") || argument.ends_with("pool") || is_text && !on.ends_with("tx")
        })
    })
}

/// Who begins one elsewhere has a transaction with the path and the isolation level of the role.
#[test]
fn each_transaction_of_ours_begins_in_one_place() {
    let begun = [
        // The transactions that `statement.rs` begins, and savepoints within them.
        "begin_bounded(",
        "begin_reading(",
        "begin_with(BEGIN_LONG)",
        "begin_with(BEGIN_READING)",
        "begin_with(statement::BEGIN_LONG)",
        "begin_with(statement::BEGIN_READING)",
        "begin_with(connection, BEGIN_LONG)",
        "begin_with(database::BEGIN_READING)",
    ];
    for alone in [
        "pool.execute(sql.clone()).await?",
        "query.fetch_all(&core.pool).await?",
        "connection.execute(AssertSqlSafe(sql))",
    ] {
        assert!(is_sent_alone(alone), "{alone}");
    }
    assert!(
        !is_sent_alone("query.persistent(false).execute(&mut *tx).await?")
            && !is_sent_alone("tx.execute(sqlx::raw_sql(SPEECH))")
    );
    let mut faults = Vec::new();
    for part in ["outbox", "inbox", "brokers", "migrations", "cli"] {
        for file in files(&root().join(part).join("src"), ".rs") {
            let name = file.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            // A bench has databases of its own.
            if name.starts_with("cli/src/bench/")
                || name.ends_with("/statement.rs")
                || name == "migrations/src/migrate.rs"
            {
                continue;
            }
            for (number, line) in std::fs::read_to_string(&file).unwrap().lines().enumerate() {
                let code = line.trim_start();
                let begins = code.contains(".begin()")
                    || code.contains("begin_with(")
                    || code.contains("Connection::begin(");
                let sends =
                    is_sent_alone(code) && !code.contains("raw_sql(alone(") && !code.starts_with("//");
                if sends && !SENT_ALONE.iter().any(|(file, sent)| *file == name && code.contains(sent)) {
                    faults.push(format!("{name}:{}: {code}", number + 1));
                }
                if begins && !code.starts_with("//") && !begun.iter().any(|begun| code.contains(begun)) {
                    // A savepoint in a record's transaction; the state machines have a `begin` of their own.
                    let savepoints = ["outbox/src/log/store.rs", "outbox/src/log/holding.rs"];
                    let known = savepoints.contains(&&*name) || code.contains("self.begin()");
                    if !known {
                        faults.push(format!("{name}:{}: {code}", number + 1));
                    }
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
