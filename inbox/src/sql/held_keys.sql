-- What is held back, the oldest first, each with its first message.
-- $1 consumer (null: all), $2 how many
select
    held_key.consumer, held_key.hold, held_key.key, held_key.state, held_key.attempts, held_key.next_attempt_at,
    held_key.last_error, held_key.held_at, first.arrival as first, first.message_id as first_id, first.kind as first_kind,
    (
        select count(*) from inbox.held_message
        where held_message.consumer = held_key.consumer and held_message.hold = held_key.hold
    ) as messages,
    (
        select pg_catalog.max(arrival) from inbox.held_message
        where held_message.consumer = held_key.consumer and held_message.hold = held_key.hold
    ) as last
from inbox.held_key
left join lateral (
    select arrival, message_id, kind from inbox.held_message
    where held_message.consumer = held_key.consumer and held_message.hold = held_key.hold
    order by arrival
    limit 1
) as first on true
where $1::text is null or held_key.consumer = $1::text
order by held_key.held_at, held_key.hold
limit $2::bigint
