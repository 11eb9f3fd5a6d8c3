-- Takes held keys that are due, and counts the try of each one's first message before it begins. Nobody else takes them
-- for as long as a try may last; a process that dies loses no more than that.
-- $1 consumer, $2 how many, $3 milliseconds a try may last, $4 the kinds that this process handles
with due as materialized (
    select hold from inbox.held_key
    where consumer = $1::text and state = 'retrying' and next_attempt_at <= clock_timestamp()
        and coalesce((
            select kind from inbox.held_message as waiting
            where waiting.consumer = held_key.consumer and waiting.hold = held_key.hold
            order by arrival limit 1
        ) = any ($4::text[]), true)
    order by next_attempt_at
    limit $2::bigint
    for no key update skip locked
), claimed as (
    update inbox.held_key
    set attempts = held_key.attempts + 1, next_attempt_at = clock_timestamp() + $3::bigint::float8 * interval '1 millisecond'
    from due
    where held_key.consumer = $1::text and held_key.hold = due.hold
    returning held_key.hold, held_key.attempts, held_key.last_error
)
select
    claimed.hold, claimed.attempts, claimed.last_error, message.arrival, message.received_at, message.message_id,
    message.correlation, message.causation, message.occurred_at, message.source, message.topic, message.kind,
    message.key, message.headers::text as headers, message.payload, message.late
from claimed
left join lateral (
    select arrival, received_at, message_id, correlation, causation, occurred_at, source, topic, kind, key, headers,
        payload, late
    from inbox.held_message
    where held_message.consumer = $1::text and held_message.hold = claimed.hold
    order by arrival
    limit 1
) as message on true
