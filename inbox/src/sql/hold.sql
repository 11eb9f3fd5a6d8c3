-- Holds a message back: opens its key unless it is held already, and appends the message unless it is held or handled
-- already. One with the same id from another source is another message. No row locks are waited for but those of a key that is just being released. `hold` is null when another
-- transaction opened or released the key meanwhile: ask again.
-- $1 consumer, $2 key to hold (null: the message alone), $3 state, $4 attempts, $5 milliseconds to the next one (null:
-- parked), $6 last error, $7 message id (null: malformed), $8 correlation, $9 causation, $10 occurred at, $11 source,
-- $12 topic, $13 kind, $14 the message's key, $15 headers, $16 payload, $17 microseconds since it was received
with handled as materialized (
    select 1 from inbox.message
    where message_id = $7::uuid and consumer = $1::text and slot = inbox.slot($7::uuid)
        and coalesce(source_hash = inbox.source_hash($11::text), true)
), held as materialized (
    select 1 from inbox.held_message
    where consumer = $1::text and message_id = $7::uuid
        and coalesce(inbox.source_hash(source) = inbox.source_hash($11::text), true)
), existing as materialized (
    select hold from inbox.held_key where consumer = $1::text and key = $2::text for key share
), opened as (
    insert into inbox.held_key (consumer, key, state, attempts, next_attempt_at, last_error)
    select $1::text, $2::text, $3::text, $4::integer,
        clock_timestamp() + $5::bigint::float8 * interval '1 millisecond', $6::text
    where not exists (select from existing) and not exists (select from handled) and not exists (select from held)
    on conflict (consumer, key) where key is not null do nothing
    returning hold
), target as (
    select hold from existing union all select hold from opened
), appended as (
    insert into inbox.held_message (
        consumer, hold, received_at, message_id, correlation, causation, occurred_at, source, topic, kind, key, headers,
        payload)
    select $1::text, target.hold, clock_timestamp() - $17::bigint::float8 * interval '1 microsecond', $7::uuid, $8::uuid,
        $9::uuid, $10::timestamptz, $11::text, $12::text, $13::text, $14::text, $15::jsonb, $16::bytea
    from target
    where not exists (select from handled) and not exists (select from held)
    on conflict (consumer, message_id, (coalesce(inbox.source_hash(source), -1))) where message_id is not null do nothing
    returning 1
)
select
    (select hold from target) as hold,
    exists (select from handled) as handled,
    exists (select from held) or exists (select from appended) as held
