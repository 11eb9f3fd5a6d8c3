//! Who runs it: deaths, stops, and two of them.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_whose_process_dies_goes_on_after_what_was_recorded() {
    let database = Database::new("replay_resumed").await;
    let pool = database.pool();
    fill(pool, 1..=500).await;
    let broker = Broker::new();
    let mut paced = settings();
    paced.rate = Some(1000);
    let first =
        replay(pool, "r", broker.publisher()).with_filter(Filter::default()).with_settings(paced.clone());
    let running = spawn(first);
    arrived(&broker, 200).await;
    running.abort();
    assert!(running.await.unwrap_err().is_cancelled());
    let on_wire = broker.published().len();
    let recorded = list(pool).await.unwrap().remove(0);
    assert!(recorded.published > 50, "{recorded:?}");
    assert_eq!((&*recorded.state, recorded.after), ("running", recorded.published), "{recorded:?}");

    // Without a filter: it has one.
    let done = run(replay(pool, "r", broker.publisher())).await.unwrap();
    assert_eq!((done.published, done.finished), (500, true));
    assert_order(&broker);
    let published = numbers(&broker);
    assert!((1..=500).all(|number| published.contains(&number)));
    // What was recorded is not published again.
    let repeated = &published[on_wire..];
    assert_eq!(repeated.first(), Some(&(recorded.published as usize + 1)));
    assert_eq!(published.len() - 500, on_wire - recorded.published as usize);

    // Once more under its name: there is nothing to do.
    let again = run(replay(pool, "r", broker.publisher())).await.unwrap();
    assert_eq!((again.published, again.after, again.already), (done.published, done.after, true));
    assert_eq!(broker.published().len(), published.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_polite_stop_repeats_nothing() {
    let database = Database::new("replay_stopped").await;
    let pool = database.pool();
    fill(pool, 1..=300).await;
    let broker = Broker::new();
    let mut finished = false;
    for life in 1..20 {
        let mut paced = settings();
        paced.rate = Some(2000);
        paced.record_interval = Duration::from_secs(3600);
        let stop = CancellationToken::new();
        let replay =
            replay(pool, "r", broker.publisher()).with_filter(Filter::default()).with_settings(paced);
        let running = tokio::spawn(replay.run(stop.clone()));
        let enough = tokio::time::timeout(PATIENCE, broker.wait_for_published((life * 70).min(300))).await;
        assert!(enough.is_ok());
        stop.cancel();
        finished = running.await.unwrap().unwrap().finished;
        if finished {
            break;
        }
    }
    assert!(finished);
    assert_eq!(numbers(&broker), (1..=300).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_do_not_publish_the_same_replay() {
    let database = Database::new("replay_two").await;
    let pool = database.pool();
    fill(pool, 1..=100).await;
    let broker = Broker::new();
    let mut paced = settings();
    paced.rate = Some(20);
    let first = replay(pool, "r", broker.publisher()).with_filter(Filter::default()).with_settings(paced);
    let running = spawn(first);
    arrived(&broker, 5).await;
    // It waits for the lease, which is renewed meanwhile: so the first is alive.
    let second = run(replay(pool, "r", Broker::new().publisher())).await;
    assert!(matches!(second, Err(ReplayError::Busy)), "{second:?}");
    assert!(!running.is_finished());
    running.abort();
    let _ = running.await;
    let done = run(replay(pool, "r", broker.publisher())).await.unwrap();
    assert_eq!(done.published, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_was_taken_for_dead_records_nothing_any_more() {
    let database = Database::new("replay_zombie").await;
    let pool = database.pool();
    fill(pool, 1..=100).await;
    let broker = Broker::new();
    let mut paced = settings();
    paced.rate = Some(10);
    let zombie =
        spawn(replay(pool, "r", broker.publisher()).with_filter(Filter::default()).with_settings(paced));
    arrived(&broker, 2).await;
    let mut paced = settings();
    paced.rate = Some(200);
    let done = loop {
        sqlx::raw_sql("update outbox.replay set expires_at = clock_timestamp()").execute(pool).await.unwrap();
        match run(replay(pool, "r", broker.publisher()).with_settings(paced.clone())).await {
            // It renewed its lease just then.
            Err(ReplayError::Busy) => {}
            done => break done.unwrap(),
        }
    };
    assert_eq!((done.published, done.finished), (100, true));
    let ended = tokio::time::timeout(PATIENCE, zombie).await.expect("it notices").unwrap();
    assert!(matches!(ended, Err(ReplayError::Busy)), "{ended:?}");
    assert_eq!(list(pool).await.unwrap()[0].published, 100);
    assert_order(&broker);
}
