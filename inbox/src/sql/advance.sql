-- The last statement of a retry's transaction: the message is done with, and out of quarantine; the next of its key is
-- counted as tried and returned, and a key in which none waits is released. Fails in an aborted transaction, and where a
-- message has been appended that this does not see, by its reference to the key. `arrival` is null: none waits, or the next
-- is in quarantine and is left to `claim_alone`, or one is being appended; without `released`, the key is then released,
-- or due again, by `release_all`, or after two seconds if that fails.
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
), free as materialized (
    -- What appends has the key locked: it is not waited for.
    select hold from inbox.held_key
    where consumer = $1::text and hold = $2::bigint and not exists (select from waiting)
    for update skip locked
), released as (
    delete from inbox.held_key
    where consumer = $1::text and hold = (select hold from free)
    returning 1
), moved as (
    update inbox.held_key
    set attempts = (select count(*) from next),
        next_attempt_at = clock_timestamp() + case
            when exists (select from next) then $4::bigint::float8 * interval '1 millisecond' else interval '2 seconds'
        end,
        tried_by = case when exists (select from next) then tried_by end
    where consumer = $1::text and hold = $2::bigint and not exists (select from free)
)
select
    exists (select from released) as released, $2::bigint as hold, 1 as attempts, ''::text as last_error, next.arrival,
    next.received_at, next.message_id, next.correlation, next.causation, next.occurred_at, next.source, next.topic,
    next.kind, next.key, next.headers::text as headers, next.payload, next.late
from (values (1)) as answer
left join next on true
