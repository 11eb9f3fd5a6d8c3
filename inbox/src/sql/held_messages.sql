-- The messages of a held key in order.
-- $1 consumer, $2 hold, $3 how many
select
    arrival, received_at, message_id, correlation, causation, occurred_at, source, topic, kind, key,
    headers::text as headers, payload, late
from inbox.held_message
where consumer = $1::text and hold = $2::bigint
order by arrival
limit $3::bigint
