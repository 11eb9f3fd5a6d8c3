-- Removes messages of a held key and writes down that they count as handled, so that a later copy is a repeat, and who
-- decided it. An id that is held since before for a message from another source is left to that one. Returns them in order.
-- $1 consumer, $2 hold, $3 up to the message of this number, $4 who, $5 why, $6 that one alone, and only if it is the first
with given_up as materialized (
    select
        arrival, received_at, message_id, correlation, causation, occurred_at, source, topic, kind, key, headers,
        payload, late
    from inbox.held_message
    where consumer = $1::text and hold = $2::bigint and arrival <= $3::bigint
        and (not $6::boolean or (
            arrival = $3::bigint
            and not exists (
                select from inbox.held_message as earlier
                where earlier.consumer = $1::text and earlier.hold = $2::bigint and earlier.arrival < $3::bigint
            )
        ))
    order by arrival
), removed as (
    delete from inbox.held_message using given_up
    where held_message.consumer = $1::text and held_message.arrival = given_up.arrival
), admitted as (
    insert into inbox.message (message_id, received_at, source_hash, slot, consumer)
    select message_id, received_at, inbox.source_hash(source), inbox.slot(message_id), $1::text
    from given_up
    where message_id is not null
        and not exists (
            select from inbox.held_message as earlier
            where earlier.consumer = $1::text and earlier.message_id = given_up.message_id
                and earlier.arrival < given_up.arrival
        )
    order by message_id
    on conflict do nothing
), written_down as (
    insert into inbox.audit (who, action, consumer, hold, message_id, reason)
    select $4::text, 'skip', $1::text, $2::bigint, message_id, $5::text
    from given_up
    order by arrival
)
select
    arrival, received_at, message_id, correlation, causation, occurred_at, source, topic, kind, key,
    headers::text as headers, payload, late
from given_up
order by arrival
