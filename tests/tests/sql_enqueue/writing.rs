//! What `outbox.enqueue` writes: into the caller's transaction, with the defaults of the contract, in the order of a key.

use std::process::Command;

use chrono::{DateTime, TimeDelta, Utc};
use message::MessageId;
use sqlx::{Executor, PgConnection, Row};
use tests::Database;
use uuid::Uuid;

async fn kinds(database: &Database) -> Vec<String> {
    sqlx::query_scalar("select kind from outbox.message order by position")
        .fetch_all(database.pool())
        .await
        .expect("the log")
}

#[tokio::test]
async fn what_is_left_out_has_the_defaults_of_the_contract() {
    let database = Database::new("defaults").await;
    let mut tx = database.pool().begin().await.expect("a transaction");
    let id: Uuid = sqlx::query_scalar("select outbox.enqueue('orders', 'order.placed', '\\x00ff'::bytea)")
        .fetch_one(&mut *tx)
        .await
        .expect("a message");
    let row = sqlx::query(
        "select m.id, correlation, causation is null and key is null and headers is null as rest_is_null,
            occurred_at = now() as happens_now, tx = pg_current_xact_id() as of_this_transaction,
            m.source = o.source and o.source = '/' || current_database() as of_this_database, payload,
            enqueued_at between now() and clock_timestamp() as enqueued_now
         from outbox.message m, outbox.origin o",
    )
    .fetch_one(&mut *tx)
    .await
    .expect("one row");
    assert_eq!((row.get::<Uuid, _>("id"), row.get::<Uuid, _>("correlation")), (id, id));
    assert_eq!(row.get::<Vec<u8>, _>("payload"), [0, 255]);
    for column in ["rest_is_null", "happens_now", "of_this_transaction", "of_this_database", "enqueued_now"] {
        assert!(row.get::<bool, _>(column), "{column}");
    }
    let made = MessageId::try_from(id).expect("not nil").made_at().expect("a UUIDv7");
    assert!((Utc::now() - made).abs() < TimeDelta::minutes(1), "{made}");
}

#[tokio::test]
async fn a_payload_given_as_text_is_stored_in_utf_8_without_any_escapes() {
    let database = Database::new("text_payload").await;
    let text = r#"{"path":"a\\b\\x41","name":"é"}"#;
    sqlx::query("select outbox.enqueue('orders', 'order.placed', $1::text, key => 'k', lock_key => true)")
        .bind(text)
        .execute(database.pool())
        .await
        .expect("a message");
    // A literal without a type is text, too.
    sqlx::query(r#"select outbox.enqueue('orders', 'order.placed', '{"path":"a\\b\\x41","name":"é"}')"#)
        .execute(database.pool())
        .await
        .expect("a message");
    let payloads: Vec<Vec<u8>> = sqlx::query_scalar("select payload from outbox.message")
        .fetch_all(database.pool())
        .await
        .expect("rows");
    assert_eq!(payloads, [text.as_bytes(), text.as_bytes()]);
}

#[tokio::test]
async fn a_uuid_of_a_moment_is_a_uuidv7_that_carries_it() {
    let database = Database::new("uuid_v7").await;
    let moment = DateTime::from_timestamp_millis(1_800_000_000_123).expect("a moment");
    let ids: Vec<Uuid> = sqlx::query_scalar("select outbox.uuid_v7($1) from generate_series(1, 1000)")
        .bind(moment)
        .fetch_all(database.pool())
        .await
        .expect("ids");
    for id in &ids {
        assert_eq!((id.get_version_num(), id.get_variant()), (7, uuid::Variant::RFC4122), "{id}");
        assert_eq!(MessageId::try_from(*id).expect("not nil").made_at(), Some(moment));
    }
    let different: std::collections::BTreeSet<_> = ids.iter().collect();
    assert_eq!(different.len(), ids.len());
    // No bit of the random part is stuck.
    let (ones, zeros) =
        ids.iter().fold((0, 0), |(ones, zeros), id| (ones | id.as_u128(), zeros | !id.as_u128()));
    const RANDOM: u128 = 0x0fff_3fff_ffff_ffff_ffff;
    assert_eq!((ones & RANDOM, zeros & RANDOM), (RANDOM, RANDOM));
}

#[tokio::test]
async fn a_rolled_back_savepoint_takes_its_message_along_and_no_other() {
    let database = Database::new("savepoint").await;
    let mut connection = database.connect().await;
    connection
        .execute(
            "begin;
             select outbox.enqueue('t', 'before', '');
             savepoint s;
             select outbox.enqueue('t', 'within', '');
             rollback to savepoint s;
             select outbox.enqueue('t', 'after', '');
             commit",
        )
        .await
        .expect("a transaction with a savepoint");
    assert_eq!(kinds(&database).await, ["before", "after"]);
}

#[tokio::test]
async fn a_rolled_back_transaction_writes_nothing() {
    let database = Database::new("rolled_back").await;
    let mut tx = database.pool().begin().await.expect("a transaction");
    tx.execute("select outbox.enqueue('t', 'k', '')").await.expect("a message");
    tx.rollback().await.expect("a rollback");
    assert!(kinds(&database).await.is_empty());
}

#[tokio::test]
async fn lock_key_lets_one_writer_of_a_key_at_a_time_draw_a_position() {
    let database = Database::new("lock_key").await;
    let mut first = database.connect().await;
    first
        .execute("begin; select outbox.enqueue('t', 'first', '', key => 'k', lock_key => true)")
        .await
        .expect("the first writer");

    // Another key waits for nobody, nor does a writer that does not ask for the lock.
    let mut second = database.connect().await;
    second
        .execute(
            "set lock_timeout = '10s';
             select outbox.enqueue('t', 'another-key', '', key => 'l', lock_key => true);
             select outbox.enqueue('t', 'no-lock', '', key => 'k');
             select outbox.enqueue('t', 'no-key', '', lock_key => true)",
        )
        .await
        .expect("no wait");
    let backend = backend(&mut second).await;
    let waiting = tokio::spawn(async move {
        second.execute("select outbox.enqueue('t', 'second', '', key => 'k', lock_key => true)").await
    });
    wait_for_lock(&database, backend).await;
    first
        .execute("select outbox.enqueue('t', 'first-again', '', key => 'k'); commit")
        .await
        .expect("a commit");
    waiting.await.expect("no panic").expect("the lock is free");
    // Had the second drawn its position before it waited, it would stand before "first-again".
    assert_eq!(
        kinds(&database).await,
        ["first", "another-key", "no-lock", "no-key", "first-again", "second"]
    );
}

async fn backend(connection: &mut PgConnection) -> i32 {
    sqlx::query_scalar("select pg_backend_pid()").fetch_one(connection).await.expect("a number")
}

async fn wait_for_lock(database: &Database, backend: i32) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        let waits: bool = sqlx::query_scalar(
            "select exists (select from pg_locks where pid = $1 and locktype = 'advisory' and not granted)",
        )
        .bind(backend)
        .fetch_one(database.pool())
        .await
        .expect("the locks");
        if waits {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "the second writer never waited for the key's lock");
    }
}

#[tokio::test]
async fn a_text_is_taken_as_what_it_is_declared() {
    let database = Database::new("declared").await;
    for arguments in [
        "'', headers => null",
        r#"'"\u0000\ud800"'"#,
        "' [1, 2] '",
        r#"'no json', headers => '{"content-type": "text/plain; charset=utf-8"}'"#,
        r#"'no json', headers => '{"content-type": "application/json-lines"}'"#,
        "convert_to('no json', 'UTF8')",
    ] {
        for function in ["outbox.enqueue('t', 'k',", "outbox.enqueue_at(now(), 't', 'k',"] {
            let sql = sqlx::AssertSqlSafe(format!("select {function} {arguments})"));
            sqlx::query(sql).execute(database.pool()).await.expect(arguments);
        }
    }
    let at = sqlx::query("select outbox.enqueue_at(now(), 't', 'k', '{4111')").execute(database.pool()).await;
    let error = at.expect_err("not JSON");
    let error = error.as_database_error().expect("the server's answer");
    assert_eq!(error.code().as_deref(), Some("22023"));
    assert!(error.message().starts_with("outbox.enqueue_at: payload: not JSON"), "{error}");
    assert!(!format!("{error:?}").contains("4111"), "{error:?}");
}

#[tokio::test]
async fn psql_alone_can_enqueue() {
    let database = Database::new("psql_alone").await;
    let sql = r#"select outbox.enqueue(
        topic => 'orders', kind => 'order.placed', payload => convert_to('{"text": "a\nb \\ \"é\""}', 'UTF8'),
        key => 'order-7', headers => '{"tenant": "acme"}')"#;
    let psql = |sql: &str| {
        Command::new("psql")
            .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1"])
            .args(["--command", sql, database.url()])
            .output()
            .expect("psql starts: install PostgreSQL's client programs")
    };
    let output = psql(sql);
    assert!(output.status.success(), "{output:?}");
    let id: Uuid = String::from_utf8_lossy(&output.stdout).trim().parse().expect("the message's id");
    let (key, tenant, payload): (String, String, Vec<u8>) =
        sqlx::query_as("select key, headers ->> 'tenant', payload from outbox.message where id = $1")
            .bind(id)
            .fetch_one(database.pool())
            .await
            .expect("the message");
    assert_eq!((&*key, &*tenant), ("order-7", "acme"));
    assert_eq!(payload, r#"{"text": "a\nb \\ \"é\""}"#.as_bytes());

    let output = psql("select outbox.enqueue('order.*', 'order.placed', '')");
    let says = "ERROR:  outbox.enqueue: topic: words of A-Z a-z 0-9 _ - joined by dots, at most 200 bytes";
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).starts_with(says), "{output:?}");
}

#[tokio::test]
async fn a_trigger_can_enqueue() {
    let database = Database::new("trigger").await;
    let mut connection = database.connect().await;
    connection
        .execute(
            "create table public.orders (id bigint primary key, total numeric);
             create function public.order_placed() returns trigger language plpgsql as $$
             begin
                 perform outbox.enqueue(
                     'orders', 'order.placed', convert_to(to_jsonb(new)::text, 'UTF8'), key => new.id::text);
                 return new;
             end $$;
             create trigger order_placed after insert on public.orders for each row
                 execute function public.order_placed();
             insert into public.orders values (7, 12.50)",
        )
        .await
        .expect("an order");
    let payload: Vec<u8> = sqlx::query_scalar("select payload from outbox.message where key = '7'")
        .fetch_one(database.pool())
        .await
        .expect("its message");
    assert_eq!(payload, br#"{"id": 7, "total": 12.50}"#);
}

/// Golden: where the hash differs (another platform, another major version), stored slots and new ones part ways.
const SLOTS: [(&str, i64, i16); 10] = [
    ("a", 3_591_986_179_850_072_241, 177),
    ("order-7", -8_492_180_005_584_672_537, 231),
    ("order-8", -1_661_506_734_946_743_841, 479),
    ("0", 2_234_665_679_637_250_028, 1004),
    (" ", 6_600_704_740_418_937_010, 178),
    ("é", -763_932_721_387_459_829, 779),
    ("e\u{301}", 906_497_045_993_010_187, 11),
    ("👩‍👩‍👧", -4_872_641_413_853_211_823, 849),
    ("018bcfe5-687b-7fff-bfff-ffffffffffff", 241_200_386_628_417_018, 506),
    ("the quick brown fox jumps over the lazy dog", -6_494_288_192_639_172_655, 977),
];

#[tokio::test]
async fn the_slot_of_a_key_is_the_same_everywhere() {
    let database = Database::new("slots").await;
    for (key, hash, slot) in SLOTS {
        let (hashed, stored): (i64, i16) = sqlx::query_as(
            "with message as (insert into outbox.message (id, correlation, source, topic, kind, key, payload)
                 values (gen_random_uuid(), gen_random_uuid(), '/x', 't', 'k', $1, '') returning slot)
             select hashtextextended($1 collate \"C\", 0), slot from message",
        )
        .bind(key)
        .fetch_one(database.pool())
        .await
        .expect("a message");
        assert_eq!((key, hashed, stored), (key, hash, slot));
    }
}

#[tokio::test]
async fn messages_without_a_key_are_spread_by_their_id() {
    let database = Database::new("no_key").await;
    let insert = "insert into outbox.message (id, correlation, source, topic, kind, payload)
        values ($1, $1, '/x', 't', 'k', '') returning slot";
    let slot = async |id: Uuid| -> i16 {
        sqlx::query_scalar(insert).bind(id).fetch_one(database.pool()).await.expect("a slot")
    };
    let golden = "018bcfe5-687b-7fff-bfff-ffffffffffff".parse().expect("a UUID");
    assert_eq!(slot(golden).await, 1008);
    let mut slots = std::collections::BTreeSet::new();
    for _ in 0..100 {
        slots.insert(slot(Uuid::now_v7()).await);
    }
    assert!(slots.len() > 80, "{slots:?}");
}

#[tokio::test]
async fn nobody_sets_a_slot() {
    let database = Database::new("nobody_sets_a_slot").await;
    let error = database
        .pool()
        .execute(
            "insert into outbox.message (slot, id, correlation, source, topic, kind, payload)
             values (1, gen_random_uuid(), gen_random_uuid(), '/x', 't', 'k', '')",
        )
        .await
        .expect_err("a generated column");
    assert_eq!(error.as_database_error().and_then(|error| error.code()).as_deref(), Some("428C9"));
}

/// Called as a function of its own it would cost more than all the rest of an enqueue.
#[tokio::test]
async fn the_limits_are_checked_within_the_functions_that_write() {
    let database = Database::new("inlined").await;
    let explain = "explain (verbose, costs off)
        select outbox.message_fault(topic, kind, payload, key, headers, id, source, correlation, causation, occurred_at)
        from outbox.scheduled_message";
    let plan: Vec<String> = sqlx::query_scalar(explain).fetch_all(database.pool()).await.expect("a plan");
    let plan = plan.join("\n");
    assert!(plan.contains("CASE") && !plan.contains("message_fault"), "{plan}");
}
