//! What an operator sees and does: status, parked keys, and a standard output that goes away.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{outbox, run};
use message::Message;
use sqlx::Executor;
use tests::Database;

fn environment(database: &Database) -> [(&'static str, &str); 1] {
    [("DATABASE_URL", database.url())]
}

async fn enqueue(database: &Database, messages: &[Message]) {
    let mut tx = database.pool().begin().await.unwrap();
    outbox::enqueue_all(&mut tx, messages).await.unwrap();
    tx.commit().await.unwrap();
}

/// A relay `default` that holds the messages of `order-7`, parked, and of `order-8`, retried.
async fn hold_in_relay(database: &Database) {
    enqueue(
        database,
        &["order-7", "order-7", "order-8"]
            .map(|key| Message::new("shop", "order.placed", "{}").with_key(key)),
    )
    .await;
    for sql in [
        "insert into outbox.relay (name, shards) values ('default', 1)",
        "insert into outbox.cursor (relay, shard, era, seen, seen_l) values ('default', 0, 1, pg_current_snapshot(), 3)",
        "insert into outbox.held_key (relay, position, slot, key, state, attempts, next_attempt_at, last_error)
         select 'default', min(position), min(slot), key, case key when 'order-7' then 'parked' else 'retrying' end, 3,
             case key when 'order-8' then now() + interval '1 hour' end, 'message rejected: no such subject'
         from outbox.message group by key",
        "insert into outbox.held_message (relay, position, held, id, correlation, causation, occurred_at, enqueued_at,
             source, topic, kind, key, headers, payload)
         select 'default', m.position, k.position, id, correlation, causation, occurred_at, enqueued_at, source, topic,
             kind, m.key, headers, payload
         from outbox.message m join outbox.held_key k on k.key = m.key",
    ] {
        database.pool().execute(sql).await.unwrap();
    }
}

/// A consumer `payment` that has parked `order-7`, two messages, and something that it could not understand.
async fn hold_in_consumer(database: &Database) {
    for (key, id) in [("order-7", Some(())), ("", None)] {
        let hold: i64 = sqlx::query_scalar(
            "insert into inbox.held_key (consumer, key, state, attempts, last_error)
             values ('payment', nullif($1, ''), 'parked', 5, 'no such account') returning hold",
        )
        .bind(key)
        .fetch_one(database.pool())
        .await
        .unwrap();
        for _ in 0..if id.is_some() { 2 } else { 1 } {
            let message = Message::new("shop", "stock.reserved", "{}");
            sqlx::query(
                "insert into inbox.held_message
                     (consumer, hold, message_id, correlation, occurred_at, source, topic, kind, key, payload)
                 values ('payment', $1, $2, $2, now(), '/a', 'shop', 'stock.reserved', nullif($3, ''), '{}')",
            )
            .bind(hold)
            .bind(id.map(|()| *message.id.as_uuid()))
            .bind(key)
            .execute(database.pool())
            .await
            .unwrap();
        }
    }
}

#[tokio::test]
async fn status_counts_what_is_pending_and_what_is_held() {
    let database = Database::new("status_counts").await;
    let environment = environment(&database);
    hold_in_relay(&database).await;
    hold_in_consumer(&database).await;
    enqueue(&database, &[Message::new("shop", "order.placed", "{}")]).await;
    let mut tx = database.pool().begin().await.unwrap();
    let due = chrono::Utc::now() + chrono::TimeDelta::hours(1);
    outbox::enqueue_all_at(&mut tx, &[Message::new("shop", "order.overdue", "{}")], due).await.unwrap();
    tx.commit().await.unwrap();
    let status = run(&["status", "--output", "json"], &environment).json();
    let relay = &status["relays"][0];
    assert_eq!((&relay["relay"], &relay["pending"]), (&"default".into(), &1.into()));
    assert_eq!((&relay["parked"], &relay["retrying"], &relay["held"]), (&1.into(), &1.into(), &3.into()));
    assert_eq!(
        (&relay["shards"], &relay["owned_shards"], &relay["processes"]),
        (&1.into(), &0.into(), &0.into())
    );
    assert!(relay["lag_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(status["scheduled"]["waiting"], 1);
    let consumer = &status["consumers"][0];
    assert_eq!(
        (&consumer["consumer"], &consumer["parked"], &consumer["held"]),
        (&"payment".into(), &2.into(), &3.into())
    );
    let ran = run(&["status"], &environment);
    assert!(ran.succeeded().contains("default  stopped  1 "), "{ran:?}");
}

#[tokio::test]
async fn what_is_parked_is_listed_with_its_reason() {
    let database = Database::new("parked_list").await;
    let environment = environment(&database);
    assert_eq!(run(&["parked"], &environment).succeeded(), "nothing is parked\n");
    hold_in_relay(&database).await;
    hold_in_consumer(&database).await;
    let list = |more: &[&str]| {
        let arguments = [&["parked", "list", "--output", "json"], more].concat();
        run(&arguments, &environment).json().as_array().unwrap().len()
    };
    assert_eq!((list(&[]), list(&["--all"])), (3, 4));
    assert_eq!((list(&["--relay", "default"]), list(&["--consumer", "payment"])), (1, 2));
    for (flag, name, says) in
        [("--relay", "defautl", "did you mean default?"), ("--consumer", "no", "no consumer no")]
    {
        run(&["parked", "list", flag, name], &environment).failed(1, &[says]);
        run(&["parked", "redrive", flag, name, "--every"], &environment).failed(1, &[says]);
    }
    let ran = run(&["parked"], &environment);
    let text = ran.succeeded();
    for words in [
        "relay default, position 1: parked",
        "message rejected: no such subject",
        "key order-7, 2 messages",
        "not understood",
    ] {
        assert!(text.contains(words), "no {words:?} in\n{text}");
    }
}

#[tokio::test]
async fn a_redrive_makes_a_parked_key_due() {
    let database = Database::new("parked_redrive").await;
    let environment = environment(&database);
    hold_in_relay(&database).await;
    hold_in_consumer(&database).await;
    let parked = async |sql: &'static str| -> i64 {
        sqlx::query_scalar(sql).fetch_one(database.pool()).await.unwrap()
    };
    let relays = "select count(*) from outbox.held_key where state = 'parked'";
    let consumers = "select count(*) from inbox.held_key where state = 'parked'";

    run(&["parked", "redrive", "--relay", "default"], &environment).failed(2, &["which key?", "--position"]);
    run(&["parked", "redrive", "--relay", "default", "--key", "x"], &environment)
        .failed(1, &["relay default holds no such key"]);
    run(&["parked", "redrive", "--relay", "default", "--position", "99"], &environment)
        .failed(1, &["no such key"]);
    assert_eq!((parked(relays).await, parked(consumers).await), (1, 2));

    let ran = run(&["parked", "redrive", "--relay", "default", "--key", "order-7"], &environment);
    assert_eq!(ran.succeeded(), "1 held key is tried again by relay default\n");
    assert_eq!(parked(relays).await, 0);
    let late = ["parked", "redrive", "--consumer", "payment", "--key", "order-7", "--late"];
    run(&late, &environment).failed_of_usage("--through");
    let listed = run(&["parked", "--consumer", "payment", "--output", "json"], &environment).json();
    let of_key = listed.as_array().unwrap().iter().find(|held| held["key"] == "order-7").unwrap();
    // The first alone: what came after it was not looked at.
    let through = of_key["first"].as_i64().unwrap();
    assert!(of_key["last"].as_i64().unwrap() > through, "{listed}");
    run(&[&late[..], &["--through", &through.to_string()]].concat(), &environment).succeeded();
    let marked = "select count(*) from inbox.held_message where late";
    assert_eq!((parked(consumers).await, parked(marked).await), (1, 1));
    let every =
        run(&["parked", "redrive", "--consumer", "payment", "--every", "--output", "json"], &environment)
            .json();
    assert_eq!((&every["redriven"], parked(consumers).await), (&1.into(), 0));
    let audit = run(&["audit", "--output", "json"], &environment).json();
    let actions: Vec<_> = audit.as_array().unwrap().iter().map(|entry| entry["action"].clone()).collect();
    assert_eq!(actions, ["redrive", "admit_late", "redrive"]);
}

#[tokio::test]
async fn a_skip_gives_up_the_first_message_only() {
    let database = Database::new("parked_skip").await;
    let environment = environment(&database);
    hold_in_relay(&database).await;
    hold_in_consumer(&database).await;
    let count = async |sql: &'static str| -> i64 {
        sqlx::query_scalar(sql).fetch_one(database.pool()).await.unwrap()
    };
    let relays = "select count(*) from outbox.held_message where key = 'order-7'";
    let consumers = "select count(*) from inbox.held_message where key = 'order-7'";
    let first = sqlx::query_scalar::<_, String>("select id::text from outbox.message where position = 1");
    let first = first.fetch_one(database.pool()).await.unwrap();

    let skip = |arguments: &[&str]| {
        run(&[&["parked", "skip", "--reason", "paid by hand"], arguments].concat(), &environment)
    };
    skip(&["--relay", "default"]).failed_of_usage("--message");
    // A key is not what was looked at: its first message is another one soon.
    skip(&["--relay", "default", "--key", "order-7"]).failed_of_usage("--key");
    run(&["parked", "skip", "--relay", "default", "--message", &first], &environment)
        .failed_of_usage("--reason");
    assert_eq!(count(relays).await, 2);
    let ran = skip(&["--relay", "default", "--message", &first, "--output", "json"]);
    assert_eq!((ran.json()["skipped"].as_str(), count(relays).await), (Some(&*first), 1));
    let listed = run(&["parked", "--consumer", "payment", "--output", "json"], &environment).json();
    let of_key = listed.as_array().unwrap().iter().find(|held| held["key"] == "order-7").unwrap().clone();
    let number = of_key["first"].as_i64().unwrap().to_string();
    skip(&["--consumer", "payment", "--number", &number, "--by", "ada"]).succeeded();
    assert_eq!(count(consumers).await, 1);

    // As when another person has redriven the key meanwhile, and its next message is parked: that was not looked at.
    for table in ["outbox", "inbox"] {
        let park = format!(
            "update {table}.held_key set state = 'parked', next_attempt_at = null where key = 'order-7'"
        );
        database.pool().execute(sqlx::AssertSqlSafe(park)).await.unwrap();
    }
    let payments = of_key["first_id"].as_str().unwrap();
    for arguments in [
        ["--relay", "default", "--message", &first],
        ["--relay", "default", "--position", "1"],
        ["--consumer", "payment", "--message", payments],
        ["--consumer", "payment", "--number", &number],
    ] {
        skip(&arguments).failed(1, &["no such message", "not any more", "nothing was changed"]);
    }
    assert_eq!((count(relays).await, count(consumers).await), (1, 1));

    // What was decided stands in the audit, the latest first, and what was not does not.
    let audit = run(&["audit", "--output", "json"], &environment).json();
    let entries = audit.as_array().unwrap();
    assert_eq!(entries.len(), 2, "{audit}");
    assert_eq!((&entries[0]["who"], &entries[0]["consumer"]), (&"ada".into(), &"payment".into()));
    assert_eq!(entries[1]["message_id"].as_str(), Some(&*first));
    for entry in entries {
        assert_eq!((&entry["action"], &entry["reason"]), (&"skip".into(), &"paid by hand".into()));
        assert!(!entry["role"].as_str().unwrap().is_empty() && !entry["who"].as_str().unwrap().is_empty());
    }
    let ran = run(&["audit", "--relay", "default"], &environment);
    assert!(
        ran.succeeded().contains(&format!("skip, relay default, position 1, message {first}")),
        "{ran:?}"
    );
}

#[tokio::test]
async fn a_relay_is_paused_resumed_and_retired_and_each_is_written_down() {
    let database = Database::new("relays_states").await;
    let environment = environment(&database);
    assert_eq!(run(&["relays"], &environment).succeeded(), "no relay has run here (outbox relay)\n");
    hold_in_relay(&database).await;
    let relays = |arguments: &[&str]| run(&[&["relays"], arguments].concat(), &environment);
    let changes = async || -> (String, i64) {
        let sql = "select state, changes from outbox.relay where name = 'default'";
        sqlx::query_as(sql).fetch_one(database.pool()).await.unwrap()
    };

    assert_eq!(relays(&["pause", "default", "--by", "ada"]).succeeded(), "relay default is paused\n");
    assert_eq!(relays(&["pause", "default"]).succeeded(), "relay default is paused already\n");
    assert_eq!(changes().await, ("paused".to_owned(), 1));
    let list = relays(&["list", "--output", "json"]).json();
    assert_eq!(
        (&list[0]["relay"], &list[0]["state"], &list[0]["processes"]),
        (&"default".into(), &"paused".into(), &0.into())
    );
    relays(&["resume", "default"]).succeeded();
    // It says what it would give up, and does nothing until it is told to, with a reason.
    let text = relays(&["retire", "default", "--reason", "contract ended"]);
    for line in [
        "relay default would give up, for good, 3 messages that it has not published: 0 pending, 3 held back",
        "no process has run it for ",
        "no other relay here is left",
        "Nothing was changed: --execute with --reason does it.",
    ] {
        assert!(text.succeeded().contains(line), "no {line:?} in {text:?}");
    }
    assert_eq!(relays(&["retire", "default", "--execute"]).code, Some(2));
    assert_eq!(changes().await, ("running".to_owned(), 2));
    relays(&["retire", "nobody"]).failed(1, &["relay nobody: no such relay"]);
    let retire = ["retire", "default", "--execute", "--reason", "contract ended", "--output", "json"];
    let retired = relays(&retire).json();
    assert_eq!((&retired["state"], &retired["changed"]), (&"retired".into(), &true.into()));
    assert_eq!((&retired["unpublished"], &retired["is_last"]), (&3.into(), &true.into()));
    assert!(relays(&retire[..5]).succeeded().contains("is retired already"));
    assert_eq!(changes().await, ("retired".to_owned(), 3));
    relays(&["resume", "default"]).failed(1, &["relay default: the relay is retired"]);
    relays(&["pause", "nobody"]).failed(1, &["relay nobody: no such relay"]);
    let audit = run(&["audit", "--output", "json"], &environment).json();
    let entries = audit.as_array().unwrap();
    let actions: Vec<_> = entries.iter().map(|entry| entry["action"].clone()).collect();
    assert_eq!(actions, ["retire", "resume", "pause"], "{audit}");
    assert_eq!((&entries[0]["reason"], &entries[2]["who"]), (&"contract ended".into(), &"ada".into()));

    // What it holds stays listed, all of it, until a person gives it up; nobody would try it again.
    let parked = run(&["parked", "--output", "json"], &environment).json();
    assert_eq!(parked.as_array().unwrap().len(), 2, "{parked}");
    run(&["parked", "redrive", "--relay", "default", "--key", "order-7"], &environment)
        .failed(1, &["relay default holds no such key"]);
    let held = "select position::text from outbox.held_message order by position";
    for position in sqlx::query_scalar::<_, String>(held).fetch_all(database.pool()).await.unwrap() {
        let skip = ["parked", "skip", "--relay", "default", "--position", &position, "--reason", "retired"];
        run(&skip, &environment).succeeded();
    }
    assert_eq!(run(&["parked", "--all"], &environment).succeeded(), "nothing is held back\n");
}

/// A consumer group of the broker database `database`, with ten messages for it, that was just stopped politely.
async fn stopped_group(database: &Database) {
    use message::Subscriber;
    let messages: Vec<Message> = (0..10).map(|n| Message::new("orders", "k", n.to_string())).collect();
    enqueue(database, &messages).await;
    let mut payment =
        brokers::postgres::PostgresSubscriber::new(database.pool().clone(), "payment".parse().unwrap());
    assert!(!payment.receive(1).await.unwrap().is_empty());
    payment.close().await;
}

#[tokio::test]
async fn a_group_that_was_stopped_is_stopped_and_following_what_is_advised_costs_it_nothing() {
    let database = Database::new("stopped_group").await;
    let environment = environment(&database);
    stopped_group(&database).await;
    let status = run(&["status", "--output", "json"], &environment).json();
    let group = &status["relays"][0];
    assert_eq!(
        (&group["state"], &group["pending"], &group["is_group"]),
        (&"stopped".into(), &10.into(), &true.into()),
        "{status}"
    );
    // Nothing is abandoned for a day, and until then nothing but a start is advised.
    let advice = [run(&["status"], &environment).out, run(&["doctor"], &environment).out];
    assert!(advice[0].contains("payment  stopped  10 "), "{advice:?}");
    assert!(advice[1].contains("do: start a consumer of group payment\n"), "{advice:?}");
    assert!(advice.iter().all(|text| !text.contains("retire")), "{advice:?}");

    // Then a command is named that says what it would cost, and does it not.
    for command in ["status", "doctor"] {
        let text = run(&[command, "--abandoned", "0s"], &environment).out;
        assert!(text.contains("outbox relays retire payment says what giving it up would lose"), "{text}");
    }
    let retire = run(&["relays", "retire", "payment"], &environment);
    assert!(
        retire.succeeded().contains(
            "consumer group payment (consumer group, all topics) would give up, for good, 10 messages that it has not \
             received: 10 pending, 0 held back"
        ),
        "{retire:?}"
    );
    assert_eq!(run(&["status", "--output", "json"], &environment).json()["relays"][0]["pending"], 10);
}

#[tokio::test]
async fn the_living_processes_of_a_consumer_are_counted() {
    let database = Database::new("status_consumer").await;
    for sql in [
        "insert into inbox.consumer (name, horizon) values ('stock', '7 days'), ('payment', '7 days')",
        "insert into inbox.process (id, consumer, expires_at) values
             (gen_random_uuid(), 'stock', now() + interval '1 hour'), (gen_random_uuid(), 'stock', now())",
    ] {
        database.pool().execute(sql).await.unwrap();
    }
    let status = run(&["status", "--output", "json"], &environment(&database)).json();
    let of =
        |number: usize| (&status["consumers"][number]["consumer"], &status["consumers"][number]["processes"]);
    assert_eq!([of(0), of(1)], [(&"payment".into(), &0.into()), (&"stock".into(), &1.into())]);
}

#[test]
fn a_reader_that_goes_away_is_no_panic_and_no_failure() {
    for arguments in [&["migrate", "--print"][..], &["--help"], &["relay", "--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = outbox(arguments, &[]).stdout(writer).output().unwrap();
        assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
    }
}

#[test]
fn a_full_disk_is_a_failure() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = outbox(&["migrate", "--print"], &[]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("outbox: cannot write to standard output: "));
}
