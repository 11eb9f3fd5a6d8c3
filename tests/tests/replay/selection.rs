//! Which messages are published, and as what.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn each_filter_lets_through_what_it_names_and_nothing_else() {
    let database = Database::new("replay_filters").await;
    let pool = database.pool();
    let cause = Message::new("t", "k", "0");
    let mut messages: Vec<Message> = [
        ("orders.eu.placed", "order.placed", Some("a")),
        ("orders.us.placed", "order.placed", Some("b")),
        ("orders", "order.changed", Some("a")),
        ("stock", "stock.taken", None),
        ("orders.eu", "order.placed", Some("c")),
    ]
    .iter()
    .enumerate()
    .map(|(index, (topic, kind, key))| {
        let mut message = Message::new(*topic, *kind, (index + 1).to_string());
        message.key = key.map(Into::into);
        message
    })
    .collect();
    messages[3] = messages[3].clone().caused_by(&cause);
    for message in &messages {
        write(pool, std::slice::from_ref(message)).await;
    }
    // An hour apart, from midnight on.
    sqlx::raw_sql(
        "update outbox.message set enqueued_at = '2026-01-01T00:00:00Z'::timestamptz + interval '1 hour' * position",
    )
    .execute(pool)
    .await
    .unwrap();
    let all = Filter::default;
    let at = |hour: u32| format!("2026-01-01T{hour:02}:00:00Z").parse().unwrap();
    let topic = |pattern: &str| all().with_topic(pattern.parse().unwrap());
    for (name, filter, expected) in [
        ("all", all(), vec![1, 2, 3, 4, 5]),
        ("from", all().with_from_position(4), vec![4, 5]),
        ("to", all().with_to_position(2), vec![1, 2]),
        ("range", all().with_from_position(2).with_to_position(3), vec![2, 3]),
        ("beyond", all().with_from_position(77), vec![]),
        ("since", all().with_since(at(4)), vec![4, 5]),
        // Within a second of a message: the place of a time is not as exact as what is asked for.
        ("since-close", all().with_since(at(4) + chrono::TimeDelta::milliseconds(500)), vec![5]),
        ("until", all().with_until(at(3)), vec![1, 2]),
        ("hours", all().with_since(at(2)).with_until(at(5)), vec![2, 3, 4]),
        ("since-never", all().with_since("2036-01-01T00:00:00Z".parse().unwrap()), vec![]),
        // Moments that no calendar of PostgreSQL holds.
        ("until-ever", all().with_until(chrono::DateTime::<chrono::Utc>::MAX_UTC), vec![1, 2, 3, 4, 5]),
        ("since-ever", all().with_since(chrono::DateTime::<chrono::Utc>::MIN_UTC), vec![1, 2, 3, 4, 5]),
        ("until-never", all().with_until(chrono::DateTime::<chrono::Utc>::MIN_UTC), vec![]),
        ("everywhere", all().with_from_position(i64::MIN).with_to_position(i64::MAX), vec![1, 2, 3, 4, 5]),
        ("topic", topic("orders"), vec![3]),
        ("pattern", topic("orders.>"), vec![1, 2, 5]),
        ("word", topic("orders.*.placed"), vec![1, 2]),
        ("topics", topic("stock").with_topic("orders.eu".parse().unwrap()), vec![4, 5]),
        ("kind", all().with_kind("order.placed"), vec![1, 2, 5]),
        ("key", all().with_key("a"), vec![1, 3]),
        ("keys", all().with_key("a").with_key("c"), vec![1, 3, 5]),
        ("id", all().with_id(messages[1].id), vec![2]),
        ("ids", all().with_id(messages[1].id).with_id(messages[4].id), vec![2, 5]),
        ("workflow", all().with_correlation(cause.id), vec![4]),
        ("both", topic("orders.>").with_key("c"), vec![5]),
        ("neither", topic("stock").with_key("a"), vec![]),
    ] {
        let foretold = preview(pool, name, Some(&filter)).await.unwrap();
        let broker = Broker::new();
        let done = run(replay(pool, name, broker.publisher()).with_filter(filter)).await.unwrap();
        let mut published = numbers(&broker);
        published.sort_unstable();
        assert_eq!(published, expected, "{name}");
        assert_eq!((done.published, done.finished), (expected.len() as i64, true), "{name}");
        assert_eq!(foretold.messages, expected.len() as i64, "{name}");
        let ends = foretold.ends.map(|(first, last)| (first.position as usize, last.position as usize));
        assert_eq!(ends, expected.first().copied().zip(expected.last().copied()), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_bears_the_replays_name_and_is_what_was_enqueued() {
    let database = Database::new("replay_marked").await;
    let written = message(1).with_header("tenant", "acme").with_content_type("text/plain");
    write(database.pool(), std::slice::from_ref(&written)).await;
    let broker = Broker::new();
    let replay = replay(database.pool(), "monthly-2", broker.publisher()).with_filter(Filter::default());
    run(replay.with_destination("rebuild.{topic}").unwrap()).await.unwrap();
    let published = broker.published();
    assert_eq!(&*published[0].destination, "rebuild.orders");
    let mut arrived = (*published[0].message).clone();
    assert_eq!(arrived.headers.replay(), Some("monthly-2"));
    arrived.headers.remove("outbox-replay");
    arrived.source = None;
    assert_eq!(arrived, written);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_was_committed_when_it_began_is_published() {
    let database = Database::new("replay_snapshot").await;
    let pool = database.pool();
    let mut open = pool.begin().await.unwrap();
    outbox::enqueue_all(&mut open, &[message(1)]).await.unwrap();
    fill(pool, 2..=4).await;
    let broker = Broker::new();
    broker.go_down();
    let running = spawn(replay(pool, "r", broker.publisher()).with_filter(Filter::default()));
    until("begun", || async { !list(pool).await.unwrap().is_empty() }).await;
    outbox::commit(open).await.unwrap();
    fill(pool, 5..=6).await;
    broker.come_up();
    let done = running.await.unwrap().unwrap();
    assert_eq!((done.published, numbers(&broker)), (3, vec![2, 3, 4]));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_through_the_leaves_of_the_ring_in_order() {
    let database = Database::new("replay_leaves").await;
    let pool = database.pool();
    let broker = Broker::new();
    for (first, number) in [(1, 1), (LEAF - 2, 4), (5 * LEAF - 1, 10), (16 * LEAF + 1, 13)] {
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
            "alter sequence outbox.message_position_seq restart {first}"
        )))
        .execute(pool)
        .await
        .unwrap();
        fill(pool, number..=number + if number == 4 { 5 } else { 2 }).await;
    }
    let foretold = preview(pool, "r", Some(&Filter::default())).await.unwrap();
    let mut settings = settings();
    settings.page = 2;
    let done =
        run(replay(pool, "r", broker.publisher()).with_filter(Filter::default()).with_settings(settings))
            .await
            .unwrap();
    assert_eq!((done.published, foretold.messages), (15, 15));
    assert_eq!(numbers(&broker), (1..=15).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_in_an_era_that_has_ended_is_published_too() {
    let database = Database::new("replay_eras").await;
    let pool = database.pool();
    fill(pool, 1..=3).await;
    // As a restore and a repair leave it: transaction ids from another life, and an era of this one above them.
    sqlx::raw_sql(
        "update outbox.message set tx = '900000000000';
         insert into outbox.cluster (era, system_identifier, first_position)
         select 2, system_identifier, 4 from outbox.cluster",
    )
    .execute(pool)
    .await
    .unwrap();
    fill(pool, 4..=5).await;
    let mut open = pool.begin().await.unwrap();
    outbox::enqueue_all(&mut open, &[message(6)]).await.unwrap();
    let broker = Broker::new();
    let done = run(replay(pool, "r", broker.publisher()).with_filter(Filter::default())).await.unwrap();
    assert_eq!((done.published, numbers(&broker)), (5, vec![1, 2, 3, 4, 5]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_says_what_would_be_published_and_writes_nothing() {
    let database = Database::new("replay_preview").await;
    let pool = database.pool();
    let messages = fill(pool, 1..=4).await;
    write(pool, &[Message::new("stock", "k", "5")]).await;
    let everything = || async {
        let sql = "select sum((xpath('/row/c/text()', query_to_xml(
                format('select count(*) as c from %I.%I', table_schema, table_name), false, true, '')))[1]::text::bigint)::bigint
            from information_schema.tables where table_schema in ('outbox', 'inbox') and table_type = 'BASE TABLE'";
        sqlx::query_scalar::<_, i64>(sql).fetch_one(pool).await.unwrap()
    };
    let before = everything().await;
    // A reader that may not even write.
    let reader = outbox::pool_options()
        .max_connections(1)
        .connect_with(
            database
                .url()
                .parse::<sqlx::postgres::PgConnectOptions>()
                .unwrap()
                .options([("default_transaction_read_only", "on")]),
        )
        .await
        .unwrap();
    let foretold = preview(&reader, "r", Some(&Filter::default().with_from_position(2))).await.unwrap();
    assert_eq!(foretold.found, Found::Nothing);
    let topics: Vec<(&str, i64)> = foretold.topics.iter().map(|(topic, count)| (&**topic, *count)).collect();
    assert_eq!((foretold.messages, topics), (4, vec![("orders", 3), ("stock", 1)]));
    let (first, last) = foretold.ends.unwrap();
    assert_eq!((first.position, first.id, last.position), (2, messages[1].id, 5));
    assert!(first.enqueued_at <= last.enqueued_at);
    assert!(matches!(preview(&reader, "r", None).await, Err(ReplayError::NotBegun)));
    assert_eq!(everything().await, before);
}

async fn effect(tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
    sqlx::query("insert into effect values ($1, $2)")
        .bind(message.id.as_uuid())
        .bind(message.headers.replay())
        .execute(&mut **tx)
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_sees_the_mark_and_an_inbox_discards_what_it_has_handled() {
    let (database, broker) = (Database::new("replay_consumed").await, Database::new("replay_broker").await);
    let pool = database.pool();
    let consumers = outbox::pool_options().max_connections(20).connect(database.url()).await.unwrap();
    sqlx::raw_sql("create table effect (message uuid, replay text)").execute(pool).await.unwrap();
    let effects = || async {
        let sql = "select coalesce(replay, '-') from effect order by 1";
        sqlx::query_scalar::<_, String>(sql).fetch_all(pool).await.unwrap()
    };
    let stop = CancellationToken::new();
    let consume = |name: &str, start: Start| {
        let subscriber =
            PostgresSubscriber::new(broker.pool().clone(), name.parse().unwrap()).with_start(start);
        let consumer = Consumer::new(name, consumers.clone(), subscriber).on("order.changed", effect);
        tokio::spawn(consumer.run(stop.clone()))
    };
    write(pool, &[message(1), message(2)]).await;
    let to_broker = || PostgresPublisher::new(broker.pool().clone());
    let relay = relay_support::start(pool, to_broker(), relay_support::settings());
    let old = consume("old", Start::Beginning);
    until("handled", || async { effects().await.len() == 2 }).await;
    relay.stop().await.unwrap();
    let new = consume("new", Start::Now);
    let groups = || async { admin::status(broker.pool()).await.unwrap() };
    until("both read", || async {
        groups().await.iter().filter(|group| group.owned_shards > 0).count() == 2
    })
    .await;

    run(replay(pool, "again", to_broker()).with_filter(Filter::default())).await.unwrap();
    until("new has handled", || async { effects().await.len() >= 4 }).await;
    until("both are done", || async { groups().await.iter().all(|group| group.pending == 0) }).await;
    stop.cancel();
    for consumer in [old, new] {
        tokio::time::timeout(PATIENCE, consumer).await.expect("it stops").unwrap().unwrap();
    }
    assert_eq!(effects().await, ["-", "-", "again", "again"]);
}

/// Publishes to memory, and looks at the first batch whether the log was on the disk by then.
struct Watchful {
    publisher: MemoryPublisher,
    pool: PgPool,
    written: i64,
    durable: Arc<AtomicBool>,
}

#[async_trait]
impl Publisher for Watchful {
    fn pipelining(&self) -> Pipelining {
        self.publisher.pipelining()
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        let flushed = "select pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint";
        let flushed: i64 = sqlx::query_scalar(flushed).fetch_one(&self.pool).await.unwrap();
        self.durable.store(flushed >= self.written, Ordering::Relaxed);
        self.publisher.publish(batch, outcomes).await;
    }
}

/// On a server of its own, whose log is written out late.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_is_on_the_disk_though_its_producer_did_not_wait() {
    let server = servers::PostgresOptions::new()
        .with_setting("wal_writer_delay", "10s")
        .with_setting("synchronous_commit", "off")
        .durable(true)
        .start()
        .expect("PostgreSQL starts");
    let pool = outbox::pool_options().connect(&server.url("postgres")).await.unwrap();
    migrations::Schema::Outbox.migrate(&mut pool.acquire().await.unwrap()).await.unwrap();
    fill(&pool, 1..=3).await;
    let written = "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint";
    let written = sqlx::query_scalar(written).fetch_one(&pool).await.unwrap();
    let durable = Arc::new(AtomicBool::new(false));
    let broker = Broker::new();
    let publisher = Watchful {
        publisher: broker.publisher(),
        pool: pool.clone(),
        written,
        durable: Arc::clone(&durable),
    };
    run(replay(&pool, "r", publisher).with_filter(Filter::default())).await.unwrap();
    assert_eq!((broker.published().len(), durable.load(Ordering::Relaxed)), (3, true));
}
