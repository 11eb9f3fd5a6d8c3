//! What the publisher confirms, rejects, and leaves open.

use message::limits::PAYLOAD_BYTES;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_under_way_when_its_connection_dies_is_not_confirmed_and_goes_when_sent_again() {
    let broker = postgres().await;
    let mut blocker = broker.database.connect().await;
    sqlx::raw_sql("begin; lock table outbox.message in exclusive mode").execute(&mut blocker).await.unwrap();
    let batch = [outgoing("orders", Message::new("orders", "k", "{}"))];
    let publisher = broker.publisher();
    let terminating = async {
        let kill = "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = $1 and wait_event_type = 'Lock'";
        loop {
            let killed: i64 = sqlx::query_scalar(kill)
                .bind(&broker.database.name)
                .fetch_one(broker.database.admin())
                .await
                .unwrap();
            if killed > 0 {
                return;
            }
        }
    };
    let (results, ()) = tokio::join!(publish_all(&publisher, &batch), terminating);
    assert!(matches!(results[0], Err(PublishError::Unavailable(_))), "{results:?}");
    sqlx::raw_sql("rollback").execute(&mut blocker).await.unwrap();
    assert_eq!(publish_all(&publisher, &batch).await, [Ok(())]);
    let count: i64 =
        sqlx::query_scalar("select count(*) from outbox.message").fetch_one(&broker.pool).await.unwrap();
    assert_eq!(count, 1);
}

/// A server that goes away while COMMIT waits may have committed, whatever it says; before COMMIT it has not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_whose_commit_the_server_does_not_finish_is_unknown_and_one_before_its_commit_is_not() {
    let broker = postgres().await;
    broker
        .execute(
            "create function public.wait() returns trigger language plpgsql as $$
            begin perform pg_advisory_xact_lock_shared(7); return new; end $$",
        )
        .await;
    for (trigger, is_unknown) in [
        (
            "create trigger wait before insert on outbox.message for each row execute function public.wait()",
            false,
        ),
        (
            "drop trigger wait on outbox.message;
            create constraint trigger wait after insert on outbox.message deferrable initially deferred
                for each row execute function public.wait()",
            true,
        ),
    ] {
        broker.execute(trigger).await;
        let mut lock = broker.pool.begin().await.unwrap();
        sqlx::query("select pg_advisory_xact_lock(7)").execute(&mut *lock).await.unwrap();
        let (publisher, batch) =
            (broker.publisher(), [outgoing("orders", Message::new("orders", "k", "{}"))]);
        let ending = async {
            let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                where datname = $1 and wait_event = 'advisory'";
            let mut ended = 0_i64;
            while ended == 0 {
                let end = sqlx::query_scalar(end).bind(&broker.database.name);
                ended = end.fetch_one(broker.database.admin()).await.unwrap();
            }
        };
        let (results, ()) = tokio::join!(publish_all(&publisher, &batch), ending);
        lock.rollback().await.unwrap();
        match is_unknown {
            true => assert!(matches!(results[0], Err(PublishError::Unknown(_))), "{results:?}"),
            false => assert!(matches!(results[0], Err(PublishError::Unavailable(_))), "{results:?}"),
        }
    }
}

/// Of a batch that is appended one by one, what comes after the unknown one was not sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_an_unknown_message_nothing_of_its_batch_is_unknown() {
    let broker = postgres().await;
    broker
        .execute(
            "alter table outbox.message add constraint no_gifts check (kind <> 'gift');
            create function public.wait() returns trigger language plpgsql as $$
            begin if new.kind = 'waits' then perform pg_advisory_xact_lock_shared(7); end if; return new; end $$;
            create constraint trigger wait after insert on outbox.message deferrable initially deferred
                for each row execute function public.wait()",
        )
        .await;
    let mut lock = broker.pool.begin().await.unwrap();
    sqlx::query("select pg_advisory_xact_lock(7)").execute(&mut *lock).await.unwrap();
    let batch = ["order", "gift", "waits", "order"]
        .map(|kind| outgoing("orders", Message::new("orders", kind, "{}")));
    let publisher = broker.publisher();
    let ending = async {
        let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity
            where datname = $1 and wait_event = 'advisory'";
        let mut ended = 0_i64;
        while ended == 0 {
            let end = sqlx::query_scalar(end).bind(&broker.database.name);
            ended = end.fetch_one(broker.database.admin()).await.unwrap();
        }
    };
    let (results, ()) = tokio::join!(publish_all(&publisher, &batch), ending);
    assert!(
        matches!(
            &results[..],
            [
                Ok(()),
                Err(PublishError::Rejected(_)),
                Err(PublishError::Unknown(_)),
                Err(PublishError::Unavailable(_))
            ]
        ),
        "{results:?}"
    );
}

#[tokio::test]
async fn a_message_at_fault_is_rejected_by_name_and_only_its_key_waits() {
    let broker = postgres().await;
    // What only this database refuses.
    broker.execute("alter table outbox.message add constraint no_gifts check (kind <> 'gift')").await;
    let of = |kind: &str, key: &str| Message::new("t", kind, "4111").with_key(key).with_source("/shop");
    let batch = [
        outgoing("orders", of("order", "a")),
        outgoing("orders", of("gift", "b")),
        outgoing("orders", of("order", "b")),
        outgoing("orders/4111", of("order", "c")),
        outgoing("orders", of("order", "c")),
        outgoing("orders", of("order", "d")),
        outgoing("orders", Message::new("t", "order", vec![b'4'; PAYLOAD_BYTES + 1])),
    ];
    let results = publish_all(&broker.publisher(), &batch).await;
    assert_eq!((&results[0], &results[5]), (&Ok(()), &Ok(())));
    for behind in [2, 4] {
        assert!(matches!(results[behind], Err(PublishError::NotSent(_))), "{:?}", results[behind]);
    }
    for (index, expected) in [
        (1, "the broker database refuses it: no_gifts"),
        (3, "destination: words of A-Z a-z 0-9 _ - joined by dots, at most 200 bytes"),
        (6, &format!("payload: at most {PAYLOAD_BYTES} bytes")),
    ] {
        assert_eq!(results[index], Err(PublishError::Rejected(expected.to_owned())));
    }
    let kept = receive_all(&mut broker.subscriber("g"), 2).await;
    assert_eq!(
        kept.iter().map(|message| message.id).collect::<Vec<_>>(),
        [0, 5].map(|n| batch[n].message.id)
    );
    assert!(kept.iter().all(|message| &*message.topic == "orders"), "the topic is the destination");
}

#[tokio::test]
async fn a_database_that_cannot_be_reached_is_unavailable() {
    let pool = outbox::pool_options()
        .acquire_timeout(Duration::from_secs(5))
        .connect_lazy("postgres://u:s3cret@127.0.0.1:1/none")
        .unwrap();
    let publisher = PostgresPublisher::new(pool.clone());
    let results = publish_all(&publisher, &[outgoing("orders", Message::new("t", "k", ""))]).await;
    let Err(PublishError::Unavailable(reason)) = &results[0] else { panic!("{results:?}") };
    assert!(!reason.contains("s3cret"), "{reason}");
    assert!(matches!(publisher.check().await, Err(PublishError::Unavailable(_))));
    let error = timeout(PATIENCE, subscriber(pool, "g").receive(1)).await.unwrap().unwrap_err();
    assert!(matches!(error, SubscribeError::Unavailable(_)), "{error:?}");
}

#[tokio::test]
async fn a_log_that_would_not_keep_messages_is_refused_by_name() {
    let empty = Database::empty("broker_postgres_empty").await;
    let refused = PostgresPublisher::new(empty.pool().clone()).check().await;
    assert!(
        matches!(&refused, Err(PublishError::Rejected(why)) if why.contains("outbox is missing")),
        "{refused:?}"
    );
    let refused = timeout(PATIENCE, subscriber(empty.pool().clone(), "g").receive(1)).await.unwrap();
    assert!(
        matches!(&refused, Err(SubscribeError::Refused(why)) if why.contains("outbox is missing")),
        "{refused:?}"
    );

    let broker = postgres().await;
    broker.publisher().check().await.expect("a fresh log is fine");
    broker.execute("alter table outbox.message_3 set unlogged").await;
    let refused = broker.publisher().check().await;
    assert!(matches!(&refused, Err(PublishError::Rejected(why)) if why.contains("unlogged")), "{refused:?}");
}

#[tokio::test]
async fn what_is_confirmed_was_flushed_though_the_database_does_not_wait_by_default() {
    let broker = postgres().await;
    broker
        .execute(
            "do $$ begin execute format('alter database %I set synchronous_commit = off', current_database()); end $$;
            create table public.seen (setting text);
            create function public.see() returns trigger language plpgsql as $$
            begin insert into public.seen values (current_setting('synchronous_commit')); return new; end $$;
            create trigger see before insert on outbox.message for each row execute function public.see()",
        )
        .await;
    // Connections that know of the new default.
    let pool = outbox::pool_options().connect(broker.database.url()).await.unwrap();
    let results =
        publish_all(&PostgresPublisher::new(pool.clone()), &[outgoing("orders", Message::new("t", "k", ""))])
            .await;
    assert_eq!(results, [Ok(())]);
    let seen: Vec<(String, String)> =
        sqlx::query_as("select setting, current_setting('synchronous_commit') from public.seen")
            .fetch_all(&pool)
            .await
            .unwrap();
    assert_eq!(seen, [("on".to_owned(), "off".to_owned())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_and_a_subscriber_need_no_more_than_their_roles_may() {
    let broker = postgres().await;
    sqlx::raw_sql(migrations::roles()).execute(&broker.pool).await.expect("the roles");
    // As on a server that has been hardened.
    let hardened = "revoke execute on function pg_control_system() from public;
        grant execute on function pg_control_system() to outbox_relay";
    sqlx::raw_sql(hardened).execute(&broker.pool).await.expect("its rights");
    let acting_as = |role: &'static str| {
        outbox::pool_options()
            .after_connect(move |connection, _| {
                Box::pin(async move { connection.execute(role).await.map(drop) })
            })
            .connect_lazy(broker.database.url())
            .expect("a URL")
    };
    let publisher = PostgresPublisher::new(acting_as("set role outbox_publisher"));
    publisher.check().await.expect("it may look whether the log keeps messages");
    publisher.log().await.expect("it may ask which log it is").expect("it is one");
    let mut sent = keyed(20, 4);
    // One of a replay, too, which a service may not write.
    sent[7].headers.insert("outbox-replay", "monthly");
    publish_in_order(&publisher, "orders", &sent).await;
    let (one, other) = (acting_as("set role outbox_relay"), acting_as("set role outbox_relay"));
    let (mut one, mut other) = (subscriber(one, "g"), subscriber(other, "g"));
    assert_in_order(&receive_all(&mut one, sent.len()).await, sent.len());
    // Sharing, too.
    assert!(timeout(ANSWER_WAIT, other.receive(1)).await.is_err());
    broker.until_owned("g", &[8, 8]).await;
    one.close().await;
    broker.until_owned("g", &[16]).await;
}
