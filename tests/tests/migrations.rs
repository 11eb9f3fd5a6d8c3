//! The schemas: brought up by many at once, by a script, once and for all; and the answers to a build that does not fit.

#![allow(clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;

use migrations::{MigrateError, Schema, SchemaError};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, Executor, PgConnection};
use tests::Database;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

const BOTH: [Schema; 2] = [Schema::Outbox, Schema::Inbox];

/// Everything in both schemas that a statement could notice, one line each.
const CATALOG: &str = "
    select format('column %s.%s %s %s not null %s identity %s generated %s default %s', c.oid::regclass, a.attnum,
        a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated,
        pg_get_expr(d.adbin, d.adrelid)) as line
    from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
    left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
    where c.relnamespace in (to_regnamespace('outbox'), to_regnamespace('inbox')) and c.relkind in ('r', 'p')
        and c.relname <> '_migrations'
    union all
    select format('relation %s %s persistence %s options %s partition key %s bound %s', c.oid::regclass, c.relkind,
        c.relpersistence, c.reloptions, pg_get_partkeydef(c.oid), pg_get_expr(c.relpartbound, c.oid))
    from pg_class c
    where c.relnamespace in (to_regnamespace('outbox'), to_regnamespace('inbox')) and c.relname !~ '^_migrations'
    union all
    select format('constraint %s %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
    from pg_constraint
    where connamespace in (to_regnamespace('outbox'), to_regnamespace('inbox')) and conname !~ '^_migrations'
    union all
    select 'index ' || indexdef from pg_indexes
    where schemaname in ('outbox', 'inbox') and tablename <> '_migrations'
    union all
    select 'function ' || pg_get_functiondef(oid)
    from pg_proc where pronamespace in (to_regnamespace('outbox'), to_regnamespace('inbox'))
    union all
    select format('trigger %s %s', tgrelid::regclass, pg_get_triggerdef(t.oid))
    from pg_trigger t join pg_class c on c.oid = tgrelid
    where not tgisinternal and c.relnamespace in (to_regnamespace('outbox'), to_regnamespace('inbox'))
    union all
    select format('sequence %s %s', seqrelid::regclass, row (seqstart, seqincrement, seqcache, seqcycle))
    from pg_sequence s join pg_class c on c.oid = s.seqrelid
    where c.relnamespace in (to_regnamespace('outbox'), to_regnamespace('inbox'))";

async fn catalog(database: &Database) -> Vec<String> {
    let mut lines: Vec<String> =
        sqlx::query_scalar(CATALOG).fetch_all(database.pool()).await.expect("the catalog");
    lines.sort();
    assert!(
        lines.is_empty() || lines.len() > 500,
        "the catalog query lost most of the schema: {}",
        lines.len()
    );
    lines
}

async fn count(database: &Database, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(database.pool()).await.expect(sql)
}

async fn execute(database: &Database, sql: &'static str) {
    database.pool().execute(sql).await.expect(sql);
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_migrate_an_empty_database_at_once() {
    for round in 0..5 {
        let database = Arc::new(Database::empty("twenty_migrate").await);
        // Half of them with an isolation level under which a transaction would not see what it waited for.
        let options: PgConnectOptions = database.url().parse().expect("a URL");
        let strict = options.options([("default_transaction_isolation", "serializable")]);
        let (barrier, mut twenty) = (Arc::new(Barrier::new(20)), JoinSet::new());
        for process in 0..20 {
            let (database, barrier, strict) = (Arc::clone(&database), Arc::clone(&barrier), strict.clone());
            twenty.spawn(async move {
                let mut connection = if process % 2 == 0 {
                    database.connect().await
                } else {
                    PgConnection::connect_with(&strict).await.expect("a connection")
                };
                barrier.wait().await;
                for schema in BOTH {
                    schema.migrate(&mut connection).await?;
                    schema.check(&mut connection).await?;
                }
                connection.close().await.map_err(anyhow::Error::from)
            });
        }
        while let Some(result) = twenty.join_next().await {
            result.expect("no panic").unwrap_or_else(|error| panic!("round {round}: {error:?}"));
        }
        for history in ["select count(*) from outbox._migrations", "select count(*) from inbox._migrations"] {
            assert_eq!(count(&database, history).await, 1, "{history}");
        }
    }
}

#[tokio::test]
async fn many_migrate_behind_a_single_connection() {
    let database = Database::empty("single_connection").await;
    let pool = outbox::pool_options().max_connections(1).connect(database.url()).await.expect("a pool");
    let mut many = JoinSet::new();
    for _ in 0..8 {
        let pool = pool.clone();
        many.spawn(async move {
            for schema in BOTH {
                let mut connection = pool.acquire().await?;
                schema.migrate(&mut connection).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(result) = many.join_next().await {
        result.expect("no panic").expect("a migration");
    }
}

#[tokio::test]
async fn migrating_again_changes_nothing() {
    let database = Database::new("migrating_again").await;
    let (before, mut connection) = (catalog(&database).await, database.connect().await);
    let history = "select string_agg(m::text, ';') from outbox._migrations m";
    let was: String = sqlx::query_scalar(history).fetch_one(database.pool()).await.expect("a history");
    for schema in BOTH {
        schema.migrate(&mut connection).await.expect("a second time");
    }
    let is: String = sqlx::query_scalar(history).fetch_one(database.pool()).await.expect("a history");
    assert_eq!(was, is);
    assert_eq!(before, catalog(&database).await);
}

#[tokio::test]
async fn printed_scripts_make_the_schema_that_migrate_makes() {
    let (migrated, printed) = (Database::new("migrated").await, Database::empty("printed").await);
    psql_scripts(&printed);
    assert_eq!(catalog(&migrated).await, catalog(&printed).await);

    // And migrate takes them as applied.
    let mut connection = printed.connect().await;
    for schema in BOTH {
        schema.check(&mut connection).await.expect("the scripts' schema fits");
        schema.migrate(&mut connection).await.expect("nothing left to do");
    }
    assert_eq!(catalog(&migrated).await, catalog(&printed).await);
    assert_eq!(count(&printed, "select count(*) from outbox._migrations where success").await, 1);
}

fn psql_scripts(database: &Database) {
    for schema in BOTH {
        for script in schema.sql() {
            let mut psql = Command::new("psql")
                .args(["--no-psqlrc", "--quiet", "--single-transaction", "--set", "ON_ERROR_STOP=1"])
                .arg(database.url())
                .stdin(Stdio::piped())
                .spawn()
                .expect("psql starts: install PostgreSQL's client programs");
            let mut input = psql.stdin.take().expect("an input");
            input.write_all(script.sql.as_bytes()).expect("psql reads");
            drop(input);
            assert!(psql.wait().expect("psql ends").success(), "{schema} {}", script.version);
        }
    }
}

#[tokio::test]
async fn a_services_own_sqlx_history_is_not_touched() {
    let database = Database::empty("own_history").await;
    // One that our migrator would take for broken, if it looked at it.
    execute(
        &database,
        "create table _sqlx_migrations (version bigint primary key, description text not null,
            installed_on timestamptz not null default now(), success boolean not null, checksum bytea not null,
            execution_time bigint not null)",
    )
    .await;
    execute(&database, "insert into _sqlx_migrations values (1, 'theirs', now(), false, '\\x00', 1)").await;
    let mut connection = database.connect().await;
    for schema in BOTH {
        schema.migrate(&mut connection).await.expect("migrations of our own");
    }
    let theirs = "select count(*) from _sqlx_migrations where description = 'theirs' and not success";
    assert_eq!(count(&database, theirs).await, 1);
    assert_eq!(count(&database, "select count(*) from _sqlx_migrations").await, 1);
}

#[tokio::test]
async fn a_failed_migration_leaves_nothing_and_holds_nobody_up() {
    let database = Database::empty("failed_migration").await;
    // Most of the migration has run before it comes to the table that is in the way.
    execute(&database, "create schema outbox create table held_message (stranger text)").await;
    let before = catalog_names(&database).await;
    let (mut first, mut second) = (database.connect().await, database.connect().await);
    let error = Schema::Outbox.migrate(&mut first).await.expect_err("a table in the way");
    assert!(matches!(error, MigrateError::Failed { version: 1, .. }), "{error:?}");
    assert_eq!(error.to_string(), "migration 1 of schema outbox failed");
    assert_eq!(catalog_names(&database).await, before);

    // The connection is fit for use, and whoever comes next finds no lock.
    execute(&database, "drop table outbox.held_message").await;
    second.execute("set lock_timeout = '5s'").await.expect("a setting");
    Schema::Outbox.migrate(&mut second).await.expect("nothing in the way");
    Schema::Outbox.migrate(&mut first).await.expect("nothing to do");
}

async fn catalog_names(database: &Database) -> Vec<String> {
    sqlx::query_scalar(
        "select relname::text from pg_class where relnamespace = to_regnamespace('outbox')
         union all select proname::text from pg_proc where pronamespace = to_regnamespace('outbox') order by 1",
    )
    .fetch_all(database.pool())
    .await
    .expect("the names")
}

#[tokio::test]
async fn an_edited_migration_is_named() {
    let database = Database::new("edited_migration").await;
    execute(&database, "update inbox._migrations set checksum = '\\x00'").await;
    let error = Schema::Inbox.migrate(&mut database.connect().await).await.expect_err("another script");
    assert!(matches!(error, MigrateError::Changed { schema: Schema::Inbox, version: 1 }), "{error:?}");
}

#[tokio::test]
async fn a_missing_schema_says_what_to_run() {
    let database = Database::empty("missing_schema").await;
    let mut transaction = database.pool().begin().await.expect("a transaction");
    for schema in BOTH {
        let error = schema.check(&mut transaction).await.expect_err("missing");
        assert!(matches!(error, SchemaError::Missing { .. }), "{error:?}");
        let says = format!("schema {schema} is missing: run `outbox migrate`");
        assert!(error.to_string().starts_with(&says), "{error}");
    }
    // Asking has not aborted the caller's transaction.
    sqlx::query("select 1").execute(&mut *transaction).await.expect("a transaction that lives");

    // A schema with nothing in it, or one whose first migration has said nothing, is no better.
    execute(&database, "create schema outbox create table schema_version (version integer, serves integer)")
        .await;
    assert!(matches!(check(&database).await, Err(SchemaError::Missing { schema: Schema::Outbox })));
}

async fn check(database: &Database) -> Result<(), SchemaError> {
    Schema::Outbox.check(&mut database.connect().await).await
}

#[tokio::test]
async fn an_older_schema_says_both_versions() {
    let database = Database::new("older_schema").await;
    execute(
        &database,
        "alter table outbox.schema_version drop constraint schema_version_check, drop constraint schema_version_pkey",
    )
    .await;
    execute(&database, "update outbox.schema_version set version = 0, serves = 0").await;
    let error = check(&database).await.expect_err("older");
    assert!(matches!(error, SchemaError::Older { version: 0, .. }), "{error:?}");
    let needs = Schema::Outbox.version();
    let says = format!("schema outbox is at version 0, this build needs {needs}: run `outbox migrate`");
    assert_eq!(error.to_string(), says);
}

#[tokio::test]
async fn a_newer_schema_that_serves_this_build_is_fine() {
    let database = Database::new("newer_serving").await;
    execute(&database, "insert into outbox.schema_version (version, serves) values (98, 1), (99, 1)").await;
    execute(
        &database,
        "insert into outbox._migrations (version, description, success, checksum, execution_time)
         values (98, 'later', true, '\\x00', 1), (99, 'later', true, '\\x00', 1)",
    )
    .await;
    check(&database).await.expect("a rolling deployment");
    // An old build that starts beside new ones migrates nothing and is not refused.
    Schema::Outbox.migrate(&mut database.connect().await).await.expect("nothing to do");
    assert_eq!(count(&database, "select count(*) from outbox._migrations").await, 3);
}

#[tokio::test]
async fn a_newer_schema_that_no_longer_serves_this_build_is_refused() {
    let database = Database::new("newer_refusing").await;
    // The middle one is what ended it; the latest goes back to its habits, and cannot take that back.
    execute(&database, "insert into outbox.schema_version (version, serves) values (98, 97), (99, 1)").await;
    let error = check(&database).await.expect_err("too new");
    assert!(matches!(error, SchemaError::TooNew { version: 99, serves: 97, .. }), "{error:?}");
    let needs = Schema::Outbox.version();
    let says = format!(
        "schema outbox is at version 99, which serves builds that need 97 or newer; this build needs {needs}: \
         run a newer build"
    );
    assert_eq!(error.to_string(), says);
    let error = Schema::Outbox.migrate(&mut database.connect().await).await.expect_err("too new");
    assert!(matches!(error, MigrateError::Schema(SchemaError::TooNew { .. })), "{error:?}");
}

#[tokio::test]
async fn an_unreachable_database_and_a_missing_right_are_not_a_missing_schema() {
    let database = Database::new("missing_right").await;
    let mut connection = database.connect().await;
    connection.execute("set role pg_monitor").await.expect("a role without rights here");
    let error = Schema::Outbox.check(&mut connection).await.expect_err("no right");
    assert!(matches!(error, SchemaError::Unreadable { schema: Schema::Outbox, .. }), "{error:?}");

    let backend: i32 =
        sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut connection).await.expect("a number");
    sqlx::query("select pg_terminate_backend($1, 5000)")
        .bind(backend)
        .execute(database.admin())
        .await
        .expect("ended");
    let error = Schema::Outbox.check(&mut connection).await.expect_err("no connection");
    assert!(matches!(error, SchemaError::Unreadable { .. }), "{error:?}");
    let error = Schema::Outbox.migrate(&mut connection).await.expect_err("no connection");
    assert!(matches!(error, MigrateError::Database { .. }), "{error:?}");
}

#[tokio::test]
async fn sqlx_migrators_apply_and_adopt_the_same() {
    let (migrated, by_sqlx) = (Database::new("migrated").await, Database::empty("by_sqlx").await);
    for schema in BOTH {
        schema.migrator().run(by_sqlx.pool()).await.expect("sqlx's way");
        schema.migrate(&mut by_sqlx.connect().await).await.expect("nothing to do");
    }
    assert_eq!(catalog(&migrated).await, catalog(&by_sqlx).await);
    assert_eq!(count(&by_sqlx, "select count(*) from outbox._migrations").await, 1);
}

#[tokio::test]
async fn the_first_era_is_this_cluster() {
    let database = Database::new("first_era").await;
    let eras = "select count(*) from outbox.cluster c join pg_control_system() s
        on s.system_identifier = c.system_identifier where era = 1 and first_position = 1";
    assert_eq!(count(&database, eras).await, 1);
    assert_eq!(count(&database, "select count(*) from outbox.cluster").await, 1);
}

#[tokio::test]
async fn positions_are_drawn_one_by_one() {
    let database = Database::new("positions").await;
    let cache = "select seqcache from pg_sequence where seqrelid = 'outbox.message_position_seq'::regclass";
    assert_eq!(count(&database, cache).await, 1);
}

/// One that does nothing costs the business transaction 7 to 14 %.
#[tokio::test]
async fn the_log_has_no_trigger() {
    let database = Database::new("triggers").await;
    let triggers = "select count(*) from pg_trigger t join pg_class c on c.oid = t.tgrelid
        where c.relnamespace = 'outbox'::regnamespace and (not t.tgisinternal or c.relname like 'message%')";
    assert_eq!(count(&database, triggers).await, 0);
}

#[tokio::test]
async fn no_table_can_lose_its_rows_in_a_crash() {
    let database = Database::new("persistence").await;
    let unlogged = "select count(*) from pg_class where relpersistence <> 'p'
        and relnamespace in ('outbox'::regnamespace, 'inbox'::regnamespace)";
    assert_eq!(count(&database, unlogged).await, 0);
}
