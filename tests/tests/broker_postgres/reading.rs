//! What a group receives, from where on, and how far it is.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminated_connections_lose_nothing_and_no_message_is_first_seen_before_its_predecessor() {
    let broker = postgres().await;
    let sent = keyed(3_000, 30);
    let mut subscriber = broker.subscriber("g");
    let receiving = async {
        let mut seen = HashSet::new();
        let mut received = Vec::new();
        while received.len() < sent.len() {
            // Unavailable while it lasts.
            let Ok(deliveries) = timeout(PATIENCE, subscriber.receive(20)).await.expect("it goes on") else {
                continue;
            };
            for delivery in deliveries {
                let message = message(&delivery).clone();
                if seen.insert(message.id) {
                    received.push(message);
                }
                let _ = delivery.acknowledge().await;
            }
        }
        received
    };
    let publishing = async {
        for chunk in sent.chunks(100) {
            let batch: Vec<Outgoing> =
                chunk.iter().map(|message| outgoing("orders", message.clone())).collect();
            // As a relay does: again until it is confirmed.
            while publish_all(&broker.publisher(), &batch).await.iter().any(Result::is_err) {}
        }
    };
    let done = tokio_util::sync::CancellationToken::new();
    let terminating = async {
        let mut killed = 0;
        let kill = "select count(pg_terminate_backend(pid)) from pg_stat_activity
            where datname = $1 and random() < 0.5";
        while !done.is_cancelled() {
            let pids: i64 = sqlx::query_scalar(kill)
                .bind(&broker.database.name)
                .fetch_one(broker.database.admin())
                .await
                .unwrap();
            killed += pids;
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
        killed
    };
    let work = async {
        let (received, ()) = tokio::join!(receiving, publishing);
        done.cancel();
        received
    };
    let (received, killed) = tokio::join!(work, terminating);
    assert!(killed > 5, "only {killed} connections were terminated");
    assert_in_order(&received, sent.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_that_are_not_asked_for_are_passed_over() {
    let broker = postgres().await;
    let publish = |destination: &'static str, number: usize| {
        let batch = [outgoing(destination, Message::new("t", "k", number.to_string()).with_key("a"))];
        let publisher = broker.publisher();
        async move { assert_eq!(publish_all(&publisher, &batch).await, [Ok(())]) }
    };
    for (number, destination) in
        ["orders", "orders.eu", "stock", "orders.eu.late", "payment.eu"].into_iter().enumerate()
    {
        publish(destination, number).await;
    }
    let topics = ["orders.>", "*.eu"].map(|pattern| pattern.parse().unwrap());
    let mut subscriber = broker.subscriber("g").with_topics(topics);
    let received = receive_all(&mut subscriber, 3).await;
    let topics: Vec<&str> = received.iter().map(|message| &*message.topic).collect();
    assert_eq!(topics, ["orders.eu", "orders.eu.late", "payment.eu"]);
    publish("stock", 5).await;
    assert_nothing_more(&mut subscriber).await;
    // The cursor is past the others, too.
    assert_eq!(broker.status("g").await.pending, 0);
    assert!("orders..eu".parse::<brokers::postgres::Pattern>().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_starts_now_receives_what_comes_later() {
    let broker = postgres().await;
    broker.publish(&keyed(10, 2)).await;
    let mut subscriber = broker.subscriber("late").with_start(Start::Now);
    assert_nothing_more(&mut subscriber).await;
    let sent = keyed(4, 2);
    broker.publish(&sent).await;
    let received = receive_all(&mut subscriber, 4).await;
    assert_in_order(&received, 4);
    assert_eq!(received[0].id, sent[0].id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_counts_what_a_group_has_not_acknowledged() {
    let broker = postgres().await;
    broker.publish(&keyed(50, 5)).await;
    let mut subscriber = broker.subscriber("g");
    let deliveries = receive_unanswered(&mut subscriber, 50).await;
    let status = broker.status("g").await;
    assert_eq!((status.pending, status.processes, status.owned_shards), (50, 1, 16));
    acknowledge(deliveries).await;
    let deadline = Instant::now() + PATIENCE;
    while broker.status("g").await.pending > 0 {
        assert!(Instant::now() < deadline, "{:?}", broker.status("g").await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_more_is_read_than_may_be_unanswered() {
    let broker = postgres().await;
    let sent = keyed(3_000, 30);
    broker.publish(&sent).await;
    let mut subscriber = broker.subscriber("g").with_max_unanswered(100);
    // To join takes longer than to receive.
    let mut held = subscriber.receive(1_000).await.expect("the broker delivers");
    while let Ok(deliveries) = timeout(ANSWER_WAIT, subscriber.receive(1_000)).await {
        held.extend(deliveries.expect("the broker delivers"));
    }
    // A page that was begun is handed out whole.
    assert!((100..=1_000).contains(&held.len()), "{}", held.len());
    let mut received: Vec<Message> = held.iter().map(|delivery| message(delivery).clone()).collect();
    acknowledge(held).await;
    received.extend(receive_all(&mut subscriber, sent.len() - received.len()).await);
    assert_in_order(&received, sent.len());
    let keys: HashMap<_, usize> = received.iter().fold(HashMap::new(), |mut keys, message| {
        *keys.entry(message.key.clone()).or_default() += 1;
        keys
    });
    assert_eq!(keys.len(), 30);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_every_group_has_acknowledged_leaves_the_log_and_nothing_else() {
    let broker = postgres().await;
    let subscriber = |group| broker.subscriber(group).with_retention(Duration::ZERO);
    let (mut ahead, mut behind) = (subscriber("ahead"), subscriber("behind"));
    broker.publish(&keyed(3, 1)).await;
    acknowledge(receive_unanswered(&mut ahead, 3).await).await;
    let last = receive_unanswered(&mut behind, 3).await.pop().expect("the last");
    ahead.close().await;
    // The log goes on in another leaf.
    broker.execute("select setval('outbox.message_position_seq', 9 << 20)").await;
    let emptied = || async { outbox::prune(&broker.pool).await.expect("it may").emptied };
    assert!(emptied().await.is_empty());
    last.acknowledge().await.expect("it is taken");
    behind.close().await;
    let mut ahead = subscriber("ahead");
    let mut behind = subscriber("behind");
    broker.publish(&keyed(1, 1)).await;
    acknowledge(receive_unanswered(&mut behind, 3).await).await;
    acknowledge(receive_unanswered(&mut ahead, 1).await).await;
    behind.close().await;
    ahead.close().await;
    // Whoever begins next looks over the leaves.
    let mut ahead = subscriber("ahead");
    let left = async || {
        let count: i64 =
            sqlx::query_scalar("select count(*) from outbox.message").fetch_one(&broker.pool).await.unwrap();
        count
    };
    let receiving = async {
        let _ = ahead.receive(1).await;
    };
    let emptying = async {
        let deadline = Instant::now() + PATIENCE;
        while left().await > 1 {
            assert!(Instant::now() < deadline, "the leaf is not emptied");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! { () = receiving => panic!("nothing more was published"), () = emptying => {} }
}
