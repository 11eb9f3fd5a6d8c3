-- The last statement of a retry's transaction: the message is done with, and out of quarantine; the next of its key is
-- counted as tried and returned. Fails in an aborted transaction. No row: none waits, or the next is in quarantine and is
-- left to `claim_alone`; the key is then released, or due again, by `release_all`, or after two seconds if that fails.
-- $1 consumer, $2 hold, $3 arrival, $4 milliseconds a try may last
with done as (
    delete from inbox.held_message where consumer = $1::text and arrival = $3::bigint
    returning message_id
), cleared as (
    delete from inbox.quarantine using done
    where quarantine.consumer = $1::text and quarantine.message_id = done.message_id
), waiting as materialized (
    select arrival, received_at, message_id, correlation, causation, occurred_at, source, topic, kind, key, headers,
        payload, late
    from inbox.held_message
    where consumer = $1::text and hold = $2::bigint and arrival <> $3::bigint
    order by arrival
    limit 1
), next as materialized (
    select * from waiting
    where not exists (
        select from inbox.quarantine
        where quarantine.consumer = $1::text and quarantine.message_id = waiting.message_id
    )
), moved as (
    update inbox.held_key
    set attempts = (select count(*) from next),
        next_attempt_at = clock_timestamp() + case
            when exists (select from next) then $4::bigint::float8 * interval '1 millisecond' else interval '2 seconds'
        end,
        tried_by = case when exists (select from next) then tried_by end
    where consumer = $1::text and hold = $2::bigint
)
select
    $2::bigint as hold, 1 as attempts, ''::text as last_error, arrival, received_at, message_id, correlation, causation,
    occurred_at, source, topic, kind, key, headers::text as headers, payload, late
from next
