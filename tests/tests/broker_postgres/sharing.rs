//! How the subscribers of a group share its shards, and hand them over.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_of_a_group_that_ask_for_different_topics_are_named() {
    let broker = postgres().await;
    let mut all = broker.subscriber("g");
    assert_nothing_more(&mut all).await;
    assert_eq!(broker.status("g").await.split, [""; 0]);
    let mut some = broker.subscriber("g").with_topics(["orders".parse().unwrap()]);
    assert_nothing_more(&mut some).await;
    let status = broker.status("g").await;
    assert_eq!((status.is_group, status.split.len()), (true, 2), "{status:?}");
    assert!(status.split.iter().any(|process| process.ends_with("consumer group, orders")), "{status:?}");
    some.close().await;
    assert_eq!(broker.status("g").await.split, [""; 0]);
}

/// As while a new build is rolled out that asks for one topic more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_process_of_a_group_has_asked_for_is_passed_by_none_of_them() {
    let broker = postgres().await;
    let asks = |topics: &[&str]| {
        broker
            .subscriber("g")
            .with_topics(topics.iter().map(|topic| topic.parse().unwrap()).collect::<Vec<_>>())
    };
    let send = async |topic: &str, numbers: std::ops::Range<usize>| {
        let message =
            |number: usize| Message::new(topic, "order.placed", number.to_string()).with_source("/shop");
        let messages: Vec<Message> = numbers.map(message).collect();
        publish_in_order(&broker.publisher(), topic, &messages).await;
    };
    let numbers = async |deliveries: Vec<Delivery>| {
        let number = |delivery: &Delivery| String::from_utf8(message(delivery).payload.to_vec()).unwrap();
        let numbers: Vec<usize> =
            deliveries.iter().map(|delivery| number(delivery).parse().unwrap()).collect();
        acknowledge(deliveries).await;
        numbers
    };
    let mut old = asks(&["orders"]);
    old.subscribe().await.unwrap();
    send("refunds", 0..1).await;
    send("orders", 1..2).await;
    // Nobody has asked for the other one.
    assert_eq!(numbers(receive(&mut old, 10).await).await, [1]);
    let mut new = asks(&["orders", "refunds"]);
    new.subscribe().await.unwrap();
    send("refunds", 2..50).await;
    let mut received = Vec::new();
    while received.len() < 48 {
        let deliveries = tokio::select! {
            deliveries = receive(&mut old, 10) => deliveries,
            deliveries = receive(&mut new, 10) => deliveries,
        };
        received.extend(numbers(deliveries).await);
    }
    // Also when the new one is gone again, and after a restart of the old one.
    new.close().await;
    old.close().await;
    let mut old = asks(&["orders"]);
    send("refunds", 50..51).await;
    while !received.contains(&50) {
        received.extend(numbers(receive(&mut old, 10).await).await);
    }
    received.sort_unstable();
    assert_eq!(received, (2..=50).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_stood_by_knows_what_was_asked_for_meanwhile() {
    let broker = postgres().await;
    let asks = |topics: &[&str]| {
        let topics: Vec<_> = topics.iter().map(|topic| topic.parse().unwrap()).collect();
        broker.subscriber("g").with_shards(1).with_topics(topics)
    };
    let mut owner = asks(&["orders"]);
    owner.subscribe().await.unwrap();
    broker.until_owned("g", &[1]).await;
    let mut stands_by = asks(&["orders"]);
    stands_by.subscribe().await.unwrap();
    let mut new = asks(&["orders", "refunds"]);
    new.subscribe().await.unwrap();
    new.close().await;
    owner.close().await;
    // The first that it reads.
    let refund = Message::new("refunds", "order.placed", "refund").with_source("/shop");
    publish_in_order(&broker.publisher(), "refunds", &[refund]).await;
    let deliveries = receive(&mut stands_by, 1).await;
    assert_eq!(&message(&deliveries[0]).payload[..], b"refund");
    acknowledge(deliveries).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_joins_gets_half_of_the_shards_and_nothing_twice() {
    let broker = postgres().await;
    let sent = keyed(1_000, 40);
    broker.publish(&sent[..500]).await;
    let mut first = broker.subscriber("g");
    let mut in_hands = receive_unanswered(&mut first, 100).await;
    broker.until_owned("g", &[16]).await;

    // It gives up half of them only when nothing of those is in a consumer's hands.
    let mut second = broker.subscriber("g");
    assert!(timeout(LEASE, second.receive(1)).await.is_err(), "took what is in another's hands");
    let mut received: Vec<Message> = in_hands.iter().map(|delivery| message(delivery).clone()).collect();
    acknowledge(in_hands.drain(..)).await;
    let of_its_share = receive_unanswered(&mut second, 1).await;
    received.extend(of_its_share.iter().map(|delivery| message(delivery).clone()));
    acknowledge(of_its_share).await;
    broker.until_owned("g", &[8, 8]).await;
    broker.publish(&sent[500..]).await;
    let (mut of_first, mut of_second) = (0, 0);
    while received.len() < sent.len() {
        let (deliveries, count) = tokio::select! {
            deliveries = receive(&mut first, 7) => (deliveries, &mut of_first),
            deliveries = receive(&mut second, 7) => (deliveries, &mut of_second),
        };
        *count += deliveries.len();
        received.extend(deliveries.iter().map(|delivery| message(delivery).clone()));
        acknowledge(deliveries).await;
    }
    assert_in_order(&received, sent.len());
    assert!(of_first > 100 && of_second > 100, "{of_first} and {of_second}");
    let (one, other) =
        tokio::join!(timeout(ANSWER_WAIT * 3, first.receive(1)), timeout(ANSWER_WAIT * 3, second.receive(1)));
    assert!(one.is_err() && other.is_err(), "something came twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_subscribers_share_and_the_two_that_stay_take_over_from_the_one_that_closes() {
    let broker = postgres().await;
    let mut subscribers: Vec<_> = (0..3).map(|_| broker.subscriber("g")).collect();
    let nothing = |subscriber: PostgresSubscriber| async {
        let mut subscriber = subscriber;
        // Receiving is what makes it work.
        assert!(timeout(Duration::from_millis(100), subscriber.receive(1)).await.is_err());
        subscriber
    };
    let joined = futures_util::future::join_all(subscribers.drain(..).map(nothing)).await;
    broker.until_owned("g", &[5, 5, 6]).await;
    let mut joined = joined.into_iter();
    joined.next().expect("a first one").close().await;
    broker.until_owned("g", &[8, 8]).await;
    assert_eq!(broker.status("g").await.processes, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_whose_pool_is_closed_hands_over_and_says_so() {
    let broker = postgres().await;
    let sent = keyed(2, 2);
    broker.publish(&sent[..1]).await;
    let own = outbox::pool_options().connect(broker.database.url()).await.expect("the database");
    let mut closed = subscriber(own.clone(), "g").with_lease(PATIENCE * 60);
    acknowledge(receive(&mut closed, 1).await).await;
    let mut receiving = closed.receive(1);
    assert!(futures_util::poll!(&mut receiving).is_pending(), "there is nothing to receive");
    timeout(PATIENCE, own.close()).await.expect("its connections are given back");
    let told = timeout(PATIENCE, receiving).await.expect("an answer");
    assert!(matches!(told, Err(SubscribeError::Refused(_))), "{told:?}");
    broker.publish(&sent[1..]).await;
    let mut next = broker.subscriber("g");
    let rest = receive(&mut next, 10).await;
    assert_eq!(rest.iter().map(|delivery| message(delivery).id).collect::<Vec<_>>(), [sent[1].id]);
    acknowledge(rest).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_subscribers_shards_are_taken_over_when_its_lease_ends() {
    let broker = postgres().await;
    let sent = keyed(200, 20);
    broker.publish(&sent).await;
    // A runtime of its own, which dies with everything in it, as a process does.
    let doomed = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let url = broker.database.url().to_owned();
    let (tell, told) = tokio::sync::oneshot::channel();
    doomed.spawn(async move {
        let pool = outbox::pool_options().connect(&url).await.expect("the database");
        let mut subscriber = subscriber(pool, "g");
        let deliveries = receive_unanswered(&mut subscriber, 50).await;
        tell.send(()).expect("the test waits");
        std::future::pending::<()>().await;
        drop((deliveries, subscriber));
    });
    told.await.expect("it receives");
    let mut heir = broker.subscriber("g");
    assert!(timeout(LEASE / 2, heir.receive(1)).await.is_err(), "took the shards of a living one");
    doomed.shutdown_background();
    let killed = Instant::now();
    let first = receive(&mut heir, 1).await;
    assert!(killed.elapsed() < LEASE * 2, "{:?}", killed.elapsed());
    let mut received: Vec<Message> = first.iter().map(|delivery| message(delivery).clone()).collect();
    acknowledge(first).await;
    received.extend(receive_all(&mut heir, sent.len() - received.len()).await);
    assert_in_order(&received, sent.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_closed_goes_on_at_once_where_it_was() {
    let broker = postgres().await;
    let sent = keyed(60, 6);
    broker.publish(&sent).await;
    // Longer than the test may take: only a polite end makes way for the next one in time.
    let long = || broker.subscriber("g").with_lease(PATIENCE * 2).with_record_interval(PATIENCE);
    let mut first = long();
    let deliveries = receive_unanswered(&mut first, 40).await;
    let mut received: Vec<Message> =
        deliveries[..20].iter().map(|delivery| message(delivery).clone()).collect();
    let mut deliveries = deliveries.into_iter();
    acknowledge(deliveries.by_ref().take(20)).await;
    first.close().await;
    // What was not answered belongs to the next one.
    let late = deliveries.next().expect("20 more").acknowledge().await;
    assert!(matches!(late, Err(SubscribeError::Unavailable(_))), "{late:?}");

    let mut second = long();
    received.extend(receive_all(&mut second, 40).await);
    assert_in_order(&received, sent.len());
    drop(second);
    let mut third = long();
    broker.until_owned("g", &[]).await;
    assert_nothing_more(&mut third).await;
    assert_eq!(broker.status("g").await.pending, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_hands_does_not_come_again_when_the_shards_are_shared_anew() {
    let broker = postgres().await;
    broker.publish(&keyed(50, 10)).await;
    let mut first = broker.subscriber("g");
    let deliveries = receive_unanswered(&mut first, 50).await;
    let of_first_key = |delivery: &Delivery| message(delivery).key.as_deref() == Some("key-0");
    let (kept, rest): (Vec<_>, Vec<_>) = deliveries.into_iter().partition(of_first_key);
    acknowledge(rest).await;
    let mut second = broker.subscriber("g");
    assert!(timeout(ANSWER_WAIT, second.receive(1)).await.is_err());
    // The shard with something in hands is not the one to go; it is read again from before that.
    broker.until_owned("g", &[8, 8]).await;
    assert_nothing_more(&mut first).await;
    assert_nothing_more(&mut second).await;
    assert_eq!(kept.len(), 5);
    acknowledge(kept).await;
}
