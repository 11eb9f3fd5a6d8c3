//! One verdict from all judges: `Message::validate`, `outbox.enqueue` and `outbox.enqueue_at`, and the constraints of the log
//! and of the scheduled messages.

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use message::{Field, InvalidMessage, Message};
use sqlx::{Executor, PgConnection};
use tests::Database;
use uuid::Uuid;

/// Both ways into the table, each answering null or the SQLSTATE and text of its refusal, so that a refusal costs no
/// transaction. Headers come as text: the cast to jsonb is where PostgreSQL refuses a NUL.
const JUDGES: &str = "
    create function pg_temp.by_function(
        id uuid, correlation uuid, causation uuid, occurred_at timestamptz, source text, topic text, kind text, key text,
        headers text, payload bytea
    ) returns text[] language plpgsql as $$
    begin
        perform outbox.enqueue(
            topic, kind, payload, key => key, headers => headers::jsonb, id => id, source => source,
            correlation => correlation, causation => causation, occurred_at => occurred_at);
        return null;
    exception when others then
        return array[sqlstate, sqlerrm];
    end $$;
    create function pg_temp.by_table(
        id uuid, correlation uuid, causation uuid, occurred_at timestamptz, source text, topic text, kind text, key text,
        headers text, payload bytea
    ) returns text[] language plpgsql as $$
    begin
        insert into outbox.message (id, correlation, causation, occurred_at, source, topic, kind, key, headers, payload)
        values (id, correlation, causation, occurred_at, coalesce(source, '/x'), topic, kind, key, headers::jsonb,
            payload);
        return null;
    exception when others then
        return array[sqlstate, sqlerrm];
    end $$;
    create function pg_temp.by_function_at(
        id uuid, correlation uuid, causation uuid, occurred_at timestamptz, source text, topic text, kind text, key text,
        headers text, payload bytea
    ) returns text[] language plpgsql as $$
    begin
        perform outbox.enqueue_at(
            now(), topic, kind, payload, key => key, headers => headers::jsonb, source => source,
            correlation => correlation, causation => causation);
        return null;
    exception when others then
        return array[sqlstate, sqlerrm];
    end $$;
    create function pg_temp.by_table_at(
        id uuid, correlation uuid, causation uuid, occurred_at timestamptz, source text, topic text, kind text, key text,
        headers text, payload bytea
    ) returns text[] language plpgsql as $$
    begin
        insert into outbox.scheduled_message
            (due_at, id, correlation, causation, occurred_at, source, topic, kind, key, headers, payload)
        values (occurred_at, outbox.uuid_v7(), correlation, causation, occurred_at, coalesce(source, '/x'), topic, kind, key,
            headers::jsonb, payload);
        return null;
    exception when others then
        return array[sqlstate, sqlerrm];
    end $$";

/// SQLSTATE and text of a refusal.
type Verdict = Option<(String, String)>;

async fn judge(connection: &mut PgConnection, judge: &'static str, message: &Message) -> Verdict {
    let answer = sqlx::query_scalar::<_, Option<Vec<String>>>(judge)
        .bind(Uuid::from(message.id))
        .bind(Uuid::from(message.correlation))
        .bind(message.causation.map(Uuid::from))
        .bind(message.occurred_at)
        .bind(message.source.as_deref())
        .bind(&*message.topic)
        .bind(&*message.kind)
        .bind(message.key.as_deref())
        .bind(message.headers.to_json())
        .bind(&message.payload[..])
        .fetch_one(connection)
        .await;
    match answer {
        Ok(None) => None,
        Ok(Some(refusal)) => Some((refusal[0].clone(), refusal[1].clone())),
        // A text with a NUL does not even reach the function.
        Err(sqlx::Error::Database(error)) => {
            Some((error.code().unwrap_or_default().into_owned(), error.message().to_owned()))
        }
        Err(error) => panic!("{error}"),
    }
}

/// Of the judges of scheduled messages, for which `occurred_at` is the due time.
async fn verdicts_at(connection: &mut PgConnection, message: &Message) -> (Verdict, Verdict) {
    const FUNCTION: &str = "select pg_temp.by_function_at($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
    const TABLE: &str = "select pg_temp.by_table_at($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
    (judge(connection, FUNCTION, message).await, judge(connection, TABLE, message).await)
}

async fn verdicts(connection: &mut PgConnection, message: &Message) -> (Verdict, Verdict) {
    const FUNCTION: &str = "select pg_temp.by_function($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
    const TABLE: &str = "select pg_temp.by_table($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
    (judge(connection, FUNCTION, message).await, judge(connection, TABLE, message).await)
}

fn changed<'a>(changes: impl IntoIterator<Item = &'a Change>) -> Message {
    let mut message = Message::new("orders", "order.placed", "{}");
    changes.into_iter().for_each(|change| change(&mut message));
    message
}

/// A change to one part of a message.
type Change = Box<dyn Fn(&mut Message)>;

/// Values of every part, about half of them just within a limit and half just beyond one.
fn changes() -> Vec<(Field, Change)> {
    let mut changes: Vec<(Field, Change)> = Vec::new();
    let mut add = |field, change: Change| changes.push((field, change));
    let names = [
        "a",
        "A-z_0.9",
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "a b",
        " a",
        "a ",
        "a*",
        "a.>",
        "a#",
        "a/b",
        "a\nb",
        "a\n",
        "\na",
        "a\r\n",
        "é",
        "a\u{301}",
        "a:b",
        "~",
        "!",
        "\u{7f}",
        "\0",
        "a\0b",
        "K\u{212a}",
        "$",
        "^a$",
        "a\\.b",
        "ß",
    ];
    let names = names.map(str::to_owned).into_iter().chain([199, 200, 201, 256].map(|n| "n".repeat(n)));
    for name in names {
        let [topic, kind, source] = [name.clone(), name.clone(), name];
        add(Field::Topic, Box::new(move |m| m.topic = topic.as_str().into()));
        add(Field::Kind, Box::new(move |m| m.kind = kind.as_str().into()));
        add(Field::Source, Box::new(move |m| m.source = Some(source.as_str().into())));
    }
    for key in ["k", "", " ", "a\r\nb", "\0", "é", "👩‍👩‍👧", "\u{202e}abc", "e\u{301}"] {
        add(Field::Key, Box::new(move |m| m.key = Some(key.into())));
    }
    for (char, times) in [("k", 512), ("k", 513), ("é", 256), ("é", 257), ("👩", 128), ("👩", 129)] {
        add(Field::Key, Box::new(move |m| m.key = Some(char.repeat(times).into())));
    }
    for size in [0, 1, 983_039, 983_040, 983_041, 2_000_000] {
        add(Field::Payload, Box::new(move |m| m.payload = vec![0xff; size].into()));
    }
    let last = DateTime::parse_from_rfc3339("9999-12-31T23:59:59.999999Z").expect("a moment").to_utc();
    let early = DateTime::from_timestamp(-188_395_000_000, 0).expect("a moment about 4000 BC");
    let moments = [DateTime::UNIX_EPOCH, last, Utc::now().trunc_subsecs(6), early];
    let microsecond = TimeDelta::microseconds(1);
    for moment in moments.into_iter().chain([DateTime::UNIX_EPOCH - microsecond, last + microsecond]) {
        add(Field::OccurredAt, Box::new(move |m| m.occurred_at = moment));
    }
    for (name, value) in headers() {
        add(Field::Headers, Box::new(move |m| m.headers.insert(name.clone(), value.clone())));
    }
    for count in [100, 1_000, 1_639, 1_640, 10_000] {
        let many = move |m: &mut Message| {
            for number in 0..count {
                m.headers.insert(format!("{number:05}"), "");
            }
        };
        add(Field::Headers, Box::new(many));
    }
    changes
}

fn headers() -> Vec<(String, String)> {
    let names = [
        "a",
        "0",
        "content-type",
        "traceparent",
        "x.y_z-0",
        "",
        "A",
        "a:b",
        "a b",
        "a\r\nb",
        "a\n",
        "-a",
        ".a",
        "_a",
        "é",
        "\0",
        "ce-id",
        "ce",
        "ce_id",
        "nats-msg-id",
        "nats",
        "webhook-id",
        "outbox-other",
        "outbox",
        "Ce-id",
    ];
    let values = [
        "", "v", " v ", "a\r\nb", "a\nb", "\0", "\t", "\u{1f}", "\u{7f}", "\u{80}", "\u{9f}", "é👩", "\"\\/",
        "{}", "\u{2028}", "\u{feff}", "\\u0000", "\\n",
    ];
    let mut headers: Vec<(String, String)> = names.map(|name| (name.to_owned(), "v".to_owned())).into();
    headers.extend(values.map(|value| ("a".to_owned(), value.to_owned())));
    headers.extend([63, 64, 65, 255, 256].map(|length| ("a".repeat(length), String::new())));
    // The whole object at the limit, one below and one above: of letters, of what JSON escapes, of many bytes a letter.
    for (char, bytes) in [("v", 1), ("\"", 2), ("\\", 2), ("é", 2), ("👩", 4)] {
        let fits = (16_384 - 9) / bytes;
        headers.extend((fits - 1..=fits + 1).map(|times| ("a".to_owned(), char.repeat(times))));
        headers.push(("a".to_owned(), char.repeat(16_384)));
    }
    headers
}

#[tokio::test]
async fn rust_function_and_table_refuse_the_same_with_the_same_words() {
    let database = Database::new("refuse_the_same").await;
    let mut connection = database.connect().await;
    connection.execute(JUDGES).await.expect("two judges");
    let (mut accepted, mut refused) = (0, 0);
    for (field, change) in changes() {
        let message = changed([&change]);
        let (function, table) = verdicts(&mut connection, &message).await;
        let (function_at, table_at) = verdicts_at(&mut connection, &message).await;
        match message.validate() {
            Ok(()) => {
                assert_eq!((&function, &table), (&None, &None), "{}", short(&message));
                assert_eq!((&function_at, &table_at), (&None, &None), "{}", short(&message));
                accepted += 1;
            }
            Err(fault) => {
                assert_eq!(fault.field, field, "{}", short(&message));
                assert_refused(("outbox.enqueue", &fault), function, table, &message);
                if field == Field::OccurredAt {
                    assert!(table_at.is_some(), "{}", short(&message));
                } else {
                    assert_refused(("outbox.enqueue_at", &fault), function_at, table_at, &message);
                }
                refused += 1;
            }
        }
    }
    assert!(accepted > 60 && refused > 80, "accepted {accepted}, refused {refused}");
}

fn assert_refused(
    (name, fault): (&str, &InvalidMessage),
    function: Verdict,
    table: Verdict,
    message: &Message,
) {
    let (state, says) = function.unwrap_or_else(|| panic!("the function takes {fault}: {}", short(message)));
    // PostgreSQL itself has no NUL in a text and none in jsonb, and says so before we can.
    if !matches!(&*state, "22021" | "22P05") {
        assert_eq!((&*state, says), ("22023", format!("{name}: {fault}")), "{}", short(message));
    }
    let (state, _) = table.unwrap_or_else(|| panic!("the table takes {fault}: {}", short(message)));
    assert!(matches!(&*state, "23514" | "22021" | "22P05"), "{state} {}", short(message));
}

#[tokio::test]
async fn rust_function_and_table_agree_on_messages_with_several_changes() {
    let database = Database::new("agree").await;
    let mut connection = database.connect().await;
    connection.execute(JUDGES).await.expect("two judges");
    let (changes, mut dice) = (changes(), Dice(42));
    for _ in 0..600 {
        let count = 2 + dice.below(3);
        let message = changed((0..count).map(|_| &changes[dice.below(changes.len())].1));
        let (function, table) = verdicts(&mut connection, &message).await;
        let refused = message.validate().is_err();
        assert_eq!(function.is_some(), refused, "{function:?} {}", short(&message));
        assert_eq!(table.is_some(), refused, "{table:?} {}", short(&message));
    }
}

#[tokio::test]
async fn the_mark_of_a_replay_is_taken_by_the_table_alone() {
    let database = Database::new("mark_of_a_replay").await;
    let mut connection = database.connect().await;
    connection.execute(JUDGES).await.expect("two judges");
    // Full, but for the mark.
    let full = Message::new("orders", "order.placed", "{}").with_header("a", "v".repeat(16_384 - 9));
    for (name, taken) in [
        ("monthly-2.b_c", true),
        (&*"n".repeat(63), true),
        (&"n".repeat(64), false),
        ("", false),
        ("Monthly", false),
        ("a b", false),
        ("a\n", false),
    ] {
        let message = full.clone().with_header("outbox-replay", name);
        let (function, table) = verdicts(&mut connection, &message).await;
        assert_eq!((function.is_some(), message.validate().is_err()), (true, true), "{name:?}");
        assert_eq!(
            (table.is_none(), message.validate_relayed().is_ok()),
            (taken, taken),
            "{name:?}: {table:?}"
        );
    }
    // One byte more than full is too much, mark or no mark.
    let fuller = full.with_header("outbox-replay", "monthly-2").with_header("a", "v".repeat(16_384 - 8));
    assert!(fuller.validate_relayed().is_err() && verdicts(&mut connection, &fuller).await.1.is_some());
}

/// The same numbers every time (the generator of Knuth's MMIX).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

fn short(message: &Message) -> String {
    let headers = message.headers.to_json().unwrap_or_default();
    let parts =
        [Some(&*message.topic), Some(&*message.kind), message.source.as_deref(), message.key.as_deref()];
    let cut = |text: &str| text.chars().take(80).collect::<String>();
    format!(
        "{:?} {:?} {} bytes, {}",
        parts.map(|part| part.map(cut)),
        cut(&headers),
        headers.len(),
        message.occurred_at
    )
}

/// What an enqueued text is told that is not the JSON it is declared as, by default or by its headers.
const NOT_JSON: &str = "payload: not JSON, as which it is declared; declare another content type (headers => \
    '{\"content-type\": \"text/plain\"}') or give it as bytea";

#[tokio::test]
async fn what_only_sql_can_say_is_refused_too() {
    let database = Database::new("only_sql").await;
    let cases = [
        (
            "topic => null, kind => 'k', payload => ''",
            "topic: words of A-Z a-z 0-9 _ - joined by dots, at most 200 bytes",
        ),
        (
            "topic => 't', kind => null, payload => ''",
            "kind: 1 to 200 printable ASCII characters without a space",
        ),
        ("'t', 'k', payload => null", "payload: must not be null (it may be empty)"),
        ("'t', 'k', '', id => '00000000-0000-0000-0000-000000000000'", "id: must not be nil"),
        (
            "'t', 'k', '', correlation => '00000000-0000-0000-0000-000000000000'",
            "correlation: must not be nil",
        ),
        ("'t', 'k', '', causation => '00000000-0000-0000-0000-000000000000'", "causation: must not be nil"),
        ("'t', 'k', '', occurred_at => 'infinity'", "occurred_at: between the years 1970 and 9999"),
        ("'t', 'k', '', occurred_at => '-infinity'", "occurred_at: between the years 1970 and 9999"),
        ("'t', 'k', '', occurred_at => '4713-01-01 BC'", "occurred_at: between the years 1970 and 9999"),
        ("'t', 'k', '', headers => '[]'", "headers: a JSON object of strings"),
        ("'t', 'k', '', headers => '\"4111\"'", "headers: a JSON object of strings"),
        ("'t', 'k', '', headers => 'null'", "headers: a JSON object of strings"),
        ("'t', 'k', '', headers => '[{\"a\": \"b\"}]'", "headers: a JSON object of strings"),
        (
            "'t', 'k', '', headers => '{\"a\": 4111}'",
            "headers: a value is a string without control characters",
        ),
        (
            "'t', 'k', '', headers => '{\"a\": null}'",
            "headers: a value is a string without control characters",
        ),
        (
            "'t', 'k', '', headers => '{\"a\": {\"b\": \"4111\"}}'",
            "headers: a value is a string without control characters",
        ),
        (
            "'t', 'k', '', headers => '{\"a\": [\"4111\"]}'",
            "headers: a value is a string without control characters",
        ),
        ("'t', 'k', '{\"card\": 4111'", NOT_JSON),
        ("'t', 'k', '[4111', headers => '{\"content-type\": \"Application/X+JSON ; v=1\"}'", NOT_JSON),
        ("'t', 'k', '[4111, ' || repeat('[', 900000)", NOT_JSON),
    ];
    for (arguments, says) in cases {
        let sql = sqlx::AssertSqlSafe(format!("select outbox.enqueue({arguments})"));
        let error = sqlx::query(sql).execute(database.pool()).await.expect_err(arguments);
        let error = error.as_database_error().expect("the server's answer");
        assert_eq!(
            (error.code().as_deref(), error.message()),
            (Some("22023"), &*format!("outbox.enqueue: {says}"))
        );
        assert!(!format!("{error:?}").contains("4111"), "{error:?}");
    }
    let written: i64 = sqlx::query_scalar("select count(*) from outbox.message")
        .fetch_one(database.pool())
        .await
        .expect("a count");
    assert_eq!(written, 0);
}

#[tokio::test]
async fn the_table_refuses_what_only_sql_can_say() {
    let database = Database::new("table_refuses").await;
    // Column by column, what `id, correlation, causation, occurred_at, headers` may not be.
    let (nil, id) = ("'00000000-0000-0000-0000-000000000000'", "gen_random_uuid()");
    let cases = [
        ([nil, id, id, "now()", "null"], "message_id_not_nil"),
        ([id, nil, id, "now()", "null"], "message_correlation_not_nil"),
        ([id, id, nil, "now()", "null"], "message_causation_not_nil"),
        ([id, id, id, "'infinity'", "null"], "message_occurred_at"),
        ([id, id, id, "now()", "'[]'"], "message_headers"),
        ([id, id, id, "now()", "'null'"], "message_headers"),
        ([id, id, id, "now()", "'\"text\"'"], "message_headers"),
        ([id, id, id, "now()", "'{\"a\": 1}'"], "message_headers"),
        ([id, id, id, "now()", "'{\"a\": null}'"], "message_headers"),
        ([id, id, id, "now()", "'[{\"a\": \"b\"}]'"], "message_headers"),
    ];
    for (values, constraint) in cases {
        let sql = format!(
            "insert into outbox.message (id, correlation, causation, occurred_at, headers, source, topic, kind, payload)
             values ({}, '/x', 't', 'k', '')",
            values.join(", ")
        );
        let error =
            sqlx::query(sqlx::AssertSqlSafe(sql)).execute(database.pool()).await.expect_err(constraint);
        let error = error.as_database_error().expect("the server's answer");
        assert_eq!(error.constraint(), Some(constraint), "{values:?}: {error}");
    }
}
