-- The last statement of a retry's transaction: the message is done with; the next of its key is counted as tried and
-- returned. Fails in an aborted transaction. No row: none waits.
-- $1 consumer, $2 hold, $3 arrival, $4 milliseconds a try may last
with done as (
    delete from inbox.held_message where consumer = $1::text and arrival = $3::bigint
), next as materialized (
    select arrival, received_at, message_id, correlation, causation, occurred_at, source, topic, kind, key, headers,
        payload, late
    from inbox.held_message
    where consumer = $1::text and hold = $2::bigint and arrival <> $3::bigint
    order by arrival
    limit 1
), moved as (
    update inbox.held_key
    set attempts = (select count(*) from next),
        next_attempt_at = clock_timestamp() + ((select count(*) from next) * $4::bigint)::float8 * interval '1 millisecond'
    where consumer = $1::text and hold = $2::bigint
)
select
    $2::bigint as hold, 1 as attempts, ''::text as last_error, arrival, received_at, message_id, correlation, causation,
    occurred_at, source, topic, kind, key, headers::text as headers, payload, late
from next
