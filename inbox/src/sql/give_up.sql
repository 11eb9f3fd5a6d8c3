-- Removes messages of a held key and writes down that they count as handled, so that a later copy is a repeat. Returns
-- them in order.
-- $1 consumer, $2 hold, $3 how many from the first on (null: all)
with given_up as materialized (
    select
        arrival, received_at, message_id, correlation, causation, occurred_at, source, topic, kind, key, headers,
        payload, late
    from inbox.held_message
    where consumer = $1::text and hold = $2::bigint
    order by arrival
    limit $3::bigint
), removed as (
    delete from inbox.held_message using given_up
    where held_message.consumer = $1::text and held_message.arrival = given_up.arrival
), admitted as (
    insert into inbox.message (message_id, received_at, slot, consumer)
    select message_id, received_at, inbox.slot(message_id), $1::text
    from given_up
    where message_id is not null
    order by message_id
    on conflict do nothing
)
select
    arrival, received_at, message_id, correlation, causation, occurred_at, source, topic, kind, key,
    headers::text as headers, payload, late
from given_up
order by arrival
