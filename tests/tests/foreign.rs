//! A service that is not Rust takes part: psql alone writes, and any reader of CloudEvents reads.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::process::Command;
use std::time::Duration;

use brokers::file::FilePublisher;
use outbox::Relay;
use tests::Database;
use tokio_util::sync::CancellationToken;

const SCRIPT: &str = r#"
begin;
create table booking (id int primary key, seats int not null);
insert into booking values (7, 2);
select outbox.enqueue(
    'bookings', 'booking.made', '{"booking": 7, "seats": 2}', key => '7', headers => '{"tenant": "acme"}',
    lock_key => true);
commit;
begin;
insert into booking values (8, 1);
select outbox.enqueue('bookings', 'booking.made', '{"booking": 8}', key => '8');
rollback;
"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_psql_enqueues_arrives_as_a_cloud_event() {
    let database = Database::new("foreign").await;
    let psql = Command::new("psql")
        .args(["--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--command", SCRIPT, database.url()])
        .output()
        .expect("psql: PostgreSQL's client is installed with its server, or by `apt-get install postgresql-client`");
    assert!(psql.status.success(), "{}", String::from_utf8_lossy(&psql.stderr));

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.jsonl");
    let stop = CancellationToken::new();
    let relay = Relay::new("default", database.pool().clone(), FilePublisher::new(&path));
    let running = tokio::spawn(relay.run(stop.clone()));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !std::fs::read_to_string(&path).unwrap_or_default().ends_with('\n') {
        assert!(tokio::time::Instant::now() < deadline, "nothing arrived");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.cancel();
    running.await.unwrap().unwrap();

    // Read as somebody who knows CloudEvents and nothing of us.
    let text = std::fs::read_to_string(&path).unwrap();
    let events: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.len(), 1, "{text}");
    let event = &events[0];
    for (attribute, value) in [
        ("specversion", "1.0"),
        ("type", "booking.made"),
        ("topic", "bookings"),
        ("partitionkey", "7"),
        ("datacontenttype", "application/json"),
    ] {
        assert_eq!(event[attribute], value, "{text}");
    }
    assert_eq!(event["source"], format!("/{}", database.name));
    assert_eq!(event["data"], serde_json::json!({"booking": 7, "seats": 2}));
    assert!(
        event["id"].as_str().unwrap().parse::<uuid::Uuid>().is_ok() && event["time"].is_string(),
        "{text}"
    );
}
