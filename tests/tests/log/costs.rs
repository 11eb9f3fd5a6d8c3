//! That reading and recording stay cheap: counted in blocks that the server touches, never in time.

use super::*;

const PAGE: &str = include_str!("../../../outbox/src/log/sql/page.sql");
const PAGE_WITH_STRAGGLERS: &str = include_str!("../../../outbox/src/log/sql/page_with_stragglers.sql");
const RECORD_BY_SHARD: &str = include_str!("../../../outbox/src/log/sql/record_by_shard.sql");
const WORKFLOWS: &str = include_str!("../../../cli/src/trace/sql/outbox_workflows.sql");
const WORKFLOW: &str = include_str!("../../../cli/src/trace/sql/logged.sql");

/// What a statement touches: blocks, and how it was planned.
struct Cost {
    blocks: i64,
    plan: String,
}

async fn cost(connection: &mut PgConnection, sql: &str, arguments: PgArguments) -> Cost {
    let explain = format!("explain (analyze, buffers, timing off, summary off, format json) {sql}");
    let query = sqlx::query_scalar_with::<_, Value, _>(AssertSqlSafe(explain), arguments).persistent(false);
    let explained = query.fetch_one(connection).await.unwrap();
    let blocks = ["Shared Hit Blocks", "Shared Read Blocks", "Temp Read Blocks"]
        .map(|kind| explained[0]["Plan"][kind].as_i64().unwrap());
    Cost { blocks: blocks.iter().sum(), plan: explained.to_string() }
}

/// Writes messages, each in a workflow of its own but for every 5,000th, which belongs to one that began a day ago.
async fn fill(connection: &mut PgConnection, messages: i32) -> Uuid {
    let old = "select outbox.uuid_v7(now() - interval '1 day')";
    let old: Uuid = sqlx::query_scalar(old).fetch_one(&mut *connection).await.unwrap();
    let insert = "insert into outbox.message (id, correlation, source, topic, kind, key, payload)
        select id, case when n % 5000 = 0 then $2 else id end, '/test', 'orders', 'order.changed', 'k' || n % 100, 'payload'
        from generate_series(1, $1) n cross join lateral outbox.uuid_v7(clock_timestamp() + n * interval '0') id";
    sqlx::query(insert).bind(messages).bind(old).execute(connection).await.unwrap();
    old
}

/// What a page costs that is read as the relay reads it.
async fn page_cost(connection: &mut PgConnection, window: &Window, range: &PageRange) -> (Cost, Cost) {
    let mut arguments = PgArguments::default();
    arguments.add(window.seen.snapshot.xmax().to_string()).unwrap();
    arguments.add(window.until.snapshot.to_string()).unwrap();
    arguments.add(range.new_after).unwrap();
    arguments.add(range.to).unwrap();
    arguments.add(100_i64).unwrap();
    arguments.add(16_i16).unwrap();
    arguments.add((0..16).collect::<Vec<i16>>()).unwrap();
    let new = cost(connection, &PAGE.replace("/*leaf*/", "0"), arguments.clone()).await;
    let stragglers: Vec<String> = range.stragglers.iter().map(u64::to_string).collect();
    arguments.add(stragglers).unwrap();
    arguments.add(range.after).unwrap();
    let sql = PAGE_WITH_STRAGGLERS.replace("/*leaf*/", "0");
    (new, cost(connection, &sql, arguments).await)
}

#[tokio::test]
async fn a_page_costs_what_it_holds_whatever_lies_behind_it_before_it_or_beside_it() {
    // Nothing is analyzed there but by the test.
    let (_server, pool) = server_of_our_own().await;
    let mut log = LogConnection::open(&pool).await.unwrap();
    // It has its id before everything, and writes after half of it.
    let mut late = pool.begin().await.unwrap();
    let straggler = xid(&mut late).await;
    let beginning = Reading::new((0..16).collect(), Eras::default().beginning());
    fill(&mut pool.acquire().await.unwrap(), 20_000).await;
    fill(&mut late, 20_000).await;
    fill(&mut pool.acquire().await.unwrap(), 20_000).await;
    let mut connection = pool.acquire().await.unwrap();
    let bound = log.prove_bound().await.unwrap();
    let seen = log.look("test").await.unwrap();
    outbox::commit(late).await.unwrap();
    let look = log.look("test").await.unwrap();

    // A backlog of everything, from its beginning and from near its end; then what was committed late, of which nothing is
    // known but the transaction.
    let mut backlog = beginning;
    backlog.advance(1, &look, bound, &Eras::default());
    let mut window = (**backlog.window().unwrap()).clone();
    let mut range = backlog.page().unwrap();
    let mut places = vec![("the beginning", window.clone(), range.clone())];
    (range.after, range.new_after) = (55_000, 55_000);
    places.push(("the end", window.clone(), range));
    let seen = Seen { era: 1, snapshot: seen.snapshot, bound };
    let mut reading = Reading::new((0..16).collect(), seen);
    assert!(reading.advance(1, &look, bound, &Eras::default()));
    window = (**reading.window().unwrap()).clone();
    let range = reading.page().unwrap();
    assert_eq!((range.after, range.new_after, &range.stragglers[..]), (0, bound, &[straggler][..]));
    let (found, _) = log.page(&window, &range, 100, usize::MAX, 16, &reading.shards).await.unwrap();
    assert_eq!((found.len(), found[0].position), (100, 20_001));
    places.push(("what was committed late", window, range));

    for analyzed in [false, true] {
        for (place, window, range) in &places {
            let (new, both) = page_cost(&mut connection, window, range).await;
            assert!(new.blocks < FEW, "{place}, analyzed {analyzed}: {}: {}", new.blocks, new.plan);
            assert!(both.blocks < FEW, "{place}, analyzed {analyzed}: {}: {}", both.blocks, both.plan);
        }
        connection.execute("analyze outbox.message").await.unwrap();
    }
}

/// Ends a connection; the scans of the cursors' table and of its indexes, and the rows written, since the beginning.
async fn reported(mut log: LogConnection, pool: &PgPool) -> (i64, i64, i64) {
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(log.connection()).await.unwrap();
    drop(log);
    let alive = "select exists (select from pg_stat_activity where pid = $1)";
    while sqlx::query_scalar(alive).bind(pid).fetch_one(pool).await.unwrap() {
        tokio::task::yield_now().await;
    }
    let scans =
        "select seq_scan, coalesce(idx_scan, 0), n_tup_upd from pg_stat_user_tables where relname = 'cursor'";
    sqlx::query_as(scans).fetch_one(pool).await.unwrap()
}

/// A snapshot that somebody holds keeps every version of a cursor's row. The way to the newest through an index, or over the
/// whole table, grows with them; its address does not.
#[tokio::test]
async fn a_record_costs_the_same_after_thousands_under_a_held_snapshot() {
    let database = Database::new("log_record").await;
    let pool = database.pool();
    let mut log = LogConnection::open(pool).await.unwrap();
    let lease = Duration::from_secs(3600);
    let (process, start) = (Uuid::now_v7(), Start::Beginning);
    let mut store = Store::join(&mut log, "default", process, 4, start, lease).await.unwrap();
    let cursors = store.acquire(log.connection(), 4).await.unwrap();
    let mut held = pool.begin().await.unwrap();
    held.execute("set transaction isolation level repeatable read").await.unwrap();
    held.execute("select count(*) from outbox.cursor").await.unwrap();
    let seen = Seen { era: 1, snapshot: log.look("default").await.unwrap().snapshot, bound: 0 };
    let record = |after| {
        let cursor = |shard| CursorRecord { shard, seen: seen.clone(), until: Some(seen.clone()), after };
        Record { cursors: (0..4).map(cursor).collect(), ..Record::default() }
    };
    for after in 1..=2000 {
        assert!(log.record(&mut store, record(after)).await.unwrap().is_empty());
    }
    // As the store does it: no index, no other way over the table, and one version after the other. A connection reports
    // what it did when it ends.
    let before = reported(log, pool).await;
    let mut log = LogConnection::open(pool).await.unwrap();
    for after in 2001..=2002 {
        assert!(log.record(&mut store, record(after)).await.unwrap().is_empty());
    }
    let now = reported(log, pool).await;
    let made = (now.0 - before.0, now.1 - before.1, now.2 - before.2);
    assert_eq!(made, (0, 0, 8), "scans of the table, scans of an index, rows written");

    // What it would cost by shard, as the store does it only when somebody else has written the row.
    let mut arguments = PgArguments::default();
    arguments.add("default").unwrap();
    arguments.add(0_i16).unwrap();
    arguments.add(cursors[0].epoch).unwrap();
    arguments.add(seen.snapshot.to_string()).unwrap();
    arguments.add(0_i64).unwrap();
    arguments.add(seen.snapshot.to_string()).unwrap();
    arguments.add(0_i64).unwrap();
    arguments.add(2002_i64).unwrap();
    arguments.add(1_i32).unwrap();
    arguments.add(None::<String>).unwrap();
    let mut log = LogConnection::open(pool).await.unwrap();
    let by_shard = cost(log.connection(), RECORD_BY_SHARD, arguments).await;
    assert!(by_shard.blocks > 100, "nothing keeps the versions: the test proves nothing: {}", by_shard.plan);
}

/// A plan that was made when a leaf or the cursors' table was empty scans all of it later.
#[tokio::test]
async fn nothing_that_reads_or_records_is_planned_once_for_ever() {
    let database = Database::new("log_plans").await;
    let pool = database.pool();
    let mut log = LogConnection::open(pool).await.unwrap();
    let (process, lease) = (Uuid::now_v7(), Duration::from_secs(3600));
    let mut store = Store::join(&mut log, "default", process, 1, Start::Beginning, lease).await.unwrap();
    store.acquire(log.connection(), 1).await.unwrap();
    let mut late = pool.begin().await.unwrap();
    let straggler = xid(&mut late).await;
    let mut reading = Reading::new(vec![0], Eras::default().beginning());
    write(pool, &[message("a", 1)]).await;
    let proven = log.prove_bound().await.unwrap();
    assert_eq!(read(&mut log, &mut reading, proven).await, [1]);
    outbox::enqueue_all(&mut late, &[message("a", 2)]).await.unwrap();
    outbox::commit(late).await.unwrap();
    let look = log.look("test").await.unwrap();
    assert!(reading.advance(2, &look, proven, &Eras::default()));
    let (window, range) = (reading.window().cloned().unwrap(), reading.page().unwrap());
    assert_eq!(range.stragglers, [straggler]);
    let (messages, _) = log.page(&window, &range, 10, usize::MAX, 1, &[0]).await.unwrap();
    assert_eq!(log.first_of(&[straggler], 0, range.to).await.unwrap(), Some(2));
    log.make_durable(look.inserted).await.unwrap();
    let cursor =
        CursorRecord { shard: 0, seen: window.seen.clone(), until: Some(window.until.clone()), after: 1 };
    let (key, error) = (messages[0].message.key.clone(), "no".to_owned());
    let hold = NewHold {
        position: 2,
        slot: messages[0].slot,
        key,
        retry_in: None,
        attempts: 1,
        error,
        reason: HoldReason::Failed,
        destination: None,
    };
    for (holds, copies) in [(vec![hold], vec![(2, messages[0].clone())]), (vec![], vec![])] {
        // Somebody else has written the row since, so that it is looked for by its shard, too.
        pool.execute("update outbox.cursor set crashes = 0").await.unwrap();
        let record = Record { cursors: vec![cursor.clone()], holds, copies, ..Record::default() };
        assert!(log.record(&mut store, record).await.unwrap().is_empty());
    }
    let kept = "select statement from pg_prepared_statements where statement like '%outbox.%'";
    let kept: Vec<String> =
        sqlx::query_scalar(kept).persistent(false).fetch_all(log.connection()).await.unwrap();
    assert_eq!(kept, [""; 0]);
}

/// By block range indexes: nothing on the writer, and a look-up touches the ranges in which the id's time lies.
#[tokio::test]
async fn a_message_and_a_workflow_are_found_in_a_fraction_of_the_log() {
    let (_server, pool) = server_of_our_own().await;
    let mut connection = pool.acquire().await.unwrap();
    let old = fill(&mut connection, 80_000).await;
    // As the server does by itself, a minute later at the latest.
    connection.execute("analyze outbox.message").await.unwrap();
    let table = "select pg_relation_size('outbox.message_0') / 8192";
    let table: i64 = sqlx::query_scalar(table).fetch_one(&mut *connection).await.unwrap();
    let one = "select id from outbox.message where position = 30000 + 1";
    let one: Uuid = sqlx::query_scalar(one).fetch_one(&mut *connection).await.unwrap();
    let argument = |id: Uuid| {
        let mut arguments = PgArguments::default();
        arguments.add(id).unwrap();
        arguments
    };
    let found = cost(&mut connection, WORKFLOWS, argument(one)).await;
    assert!(found.blocks > table, "nothing is left to summarize: the test proves nothing: {}", found.plan);
    // Who looks after a log that no relay reads looks after nothing.
    pool.execute("insert into outbox.relay (name) values ('default')").await.unwrap();
    let (stop, hour) = (CancellationToken::new(), Duration::from_secs(3600));
    let upkeep = Upkeep::new(pool.clone(), "default", hour, hour);
    let upkeep = tokio::spawn(upkeep.run(stop.clone()));
    until("a message is found in less than half of the log", || async {
        let mut connection = pool.acquire().await.unwrap();
        cost(&mut connection, WORKFLOWS, argument(one)).await.blocks < table / 2
    })
    .await;
    stop.cancel();
    upkeep.await.unwrap();
    let absent = *MessageId::new().as_uuid();
    let none = cost(&mut connection, WORKFLOWS, argument(absent)).await;
    assert!(none.blocks < table / 4, "{} of {table}: {}", none.blocks, none.plan);
    let mut arguments = argument(one);
    arguments.add(1000_i64).unwrap();
    let workflow = cost(&mut connection, WORKFLOW, arguments).await;
    assert!(workflow.blocks < table / 4, "{} of {table}: {}", workflow.blocks, workflow.plan);
    // A workflow that is still at work after a day does not spoil the ranges in which it stands.
    let mut arguments = argument(old);
    arguments.add(1000_i64).unwrap();
    let rows =
        sqlx::query_with(AssertSqlSafe(WORKFLOW), arguments).fetch_all(&mut *connection).await.unwrap();
    assert_eq!(rows.len(), 16);
}
