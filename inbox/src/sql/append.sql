-- Appends a message behind the others of its held key, unless it is held or handled already, or another message of its id
-- is, from another source. No row: the key is held no longer.
-- $1 consumer, $2 key, $3 message id, $4 correlation, $5 causation, $6 occurred at, $7 source, $8 topic, $9 kind,
-- $10 headers, $11 payload, $12 microseconds since it was received
with handled as materialized (
    select coalesce(source_hash = inbox.source_hash($7::text), true) as same from inbox.message
    where message_id = $3::uuid and consumer = $1::text and slot = inbox.slot($3::uuid)
), existing as materialized (
    select hold from inbox.held_key where consumer = $1::text and key = $2::text for key share
), appended as (
    insert into inbox.held_message (
        consumer, hold, received_at, message_id, correlation, causation, occurred_at, source, topic, kind, key, headers,
        payload)
    select $1::text, existing.hold, clock_timestamp() - $12::bigint::float8 * interval '1 microsecond', $3::uuid, $4::uuid,
        $5::uuid, $6::timestamptz, $7::text, $8::text, $9::text, $2::text, $10::jsonb, $11::bytea
    from existing
    where not exists (select from handled)
    on conflict (consumer, message_id, (coalesce(inbox.source_hash(source), -1))) where message_id is not null do nothing
    returning 1
)
select
    exists (select from handled where same) as handled,
    exists (select from handled where not same) as another_source
from existing
