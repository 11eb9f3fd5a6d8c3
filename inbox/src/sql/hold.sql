-- Holds a message back: opens its key unless it is held already, and appends the message unless it is held or handled
-- already. If its id is known from another source, handled or held, nothing is done unless `$19` says so: the caller then
-- holds it alone. No row locks are waited for but those of a key that is just being released. If none of the answers is true,
-- another transaction opened or released the key meanwhile, or held a copy: roll back, and ask again. A message whose first try
-- has ended leaves the quarantine.
-- $1 consumer, $2 key to hold (null: the message alone), $3 state, $4 attempts, $5 milliseconds to the next one (null:
-- parked), $6 last error, $7 message id (null: malformed), $8 correlation, $9 causation, $10 occurred at, $11 source as it
-- is stored, $12 topic, $13 kind, $14 the message's key, $15 headers, $16 payload, $17 microseconds since it was received,
-- $18 source by which it is told from another message (null: unknown), $19 whether one with a known id from another source
-- is held
with handled as materialized (
    select coalesce(source_hash = inbox.source_hash($18::text), true) as same from inbox.message
    where message_id = $7::uuid and consumer = $1::text and slot = inbox.slot($7::uuid)
), held as materialized (
    select coalesce(inbox.source_hash(source) = inbox.source_hash($18::text), true) as same from inbox.held_message
    where consumer = $1::text and message_id = $7::uuid
), found as materialized (
    select
        exists (select from handled where same) as handled,
        exists (select from held where same) as held,
        exists (select from handled where not same) or exists (select from held where not same) as another_source
), wanted as materialized (
    select from found where not handled and not held and ($19::boolean or not another_source)
), existing as materialized (
    select hold from inbox.held_key where consumer = $1::text and key = $2::text for key share
), opened as (
    insert into inbox.held_key (consumer, key, state, attempts, next_attempt_at, last_error)
    select $1::text, $2::text, $3::text, $4::integer,
        clock_timestamp() + $5::bigint::float8 * interval '1 millisecond', $6::text
    from wanted
    where not exists (select from existing)
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
    from target, wanted
    on conflict (consumer, message_id, (coalesce(inbox.source_hash(source), -1))) where message_id is not null do nothing
    returning 1
), cleared as (
    delete from inbox.quarantine
    where consumer = $1::text and message_id = $7::uuid and $4::integer > 0 and exists (select from appended)
)
select
    found.handled,
    found.held or exists (select from appended) as held,
    found.another_source and not found.handled and not found.held and not $19::boolean as another_source
from found
