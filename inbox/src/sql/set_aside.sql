-- Ends a try of a held key whose first message has an id that is known from another source: the message is parked alone,
-- and the key is due at once. Its id leaves the quarantine, unless the other one is held. Returns whether that was done: not if the message is held alone already,
-- if a person has decided about the key meanwhile, or if another process has claimed it.
-- $1 consumer, $2 hold, $3 attempts written before the try, $4 arrival, $5 why, $6 process
with mine as materialized (
    select hold from inbox.held_key
    where consumer = $1::text and hold = $2::bigint and attempts = $3::integer and state = 'retrying'
        and tried_by = $6::uuid and key is not null
    for no key update
), taken as (
    delete from inbox.held_message using mine
    where held_message.consumer = $1::text and held_message.arrival = $4::bigint and held_message.hold = mine.hold
    returning received_at, message_id, correlation, causation, occurred_at, source, topic, kind, held_message.key, headers,
        payload, late
), opened as (
    insert into inbox.held_key (consumer, state, attempts, last_error)
    select $1::text, 'parked', 0, $5::text from taken
    returning hold
), moved as (
    insert into inbox.held_message (
        consumer, hold, received_at, message_id, correlation, causation, occurred_at, source, topic, kind, key, headers,
        payload, late)
    select $1::text, opened.hold, received_at, message_id, correlation, causation, occurred_at, source, topic, kind, key,
        headers, payload, late
    from opened, taken
), cleared as (
    delete from inbox.quarantine using taken
    where quarantine.consumer = $1::text and quarantine.message_id = taken.message_id
        and not exists (
            select from inbox.held_message as other
            where other.consumer = $1::text and other.message_id = taken.message_id and other.arrival <> $4::bigint
        )
), freed as (
    update inbox.held_key set attempts = 0, next_attempt_at = clock_timestamp(), tried_by = null
    from mine
    where held_key.consumer = $1::text and held_key.hold = mine.hold and exists (select from taken)
)
select exists (select from opened) as done
