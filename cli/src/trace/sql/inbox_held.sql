-- What consumers hold back of some workflows. $1 correlations, $2 message ids, $3 most rows.
-- The first of a hold is the one that failed; the others wait behind it. Only the log knows when it was enqueued.
-- A time that is none, from before its constraint, is not said.
select m.message_id as id, m.correlation, m.causation,
    case when m.occurred_at between '1970-01-01 00:00:00+00' and '9999-12-31 23:59:59+00' then m.occurred_at end as occurred_at,
    null::timestamptz as enqueued_at,
    m.source, m.topic, m.kind, m.key,
    m.consumer as name, k.state = 'parked' as parked, k.attempts, k.next_attempt_at, k.last_error, k.held_at,
    exists (
        select from inbox.held_message f
        where f.consumer = m.consumer and f.hold = m.hold and f.arrival < m.arrival
    ) as behind
from inbox.held_message m
join inbox.held_key k on k.consumer = m.consumer and k.hold = m.hold
where m.message_id is not null and (m.correlation = any ($1) or m.message_id = any ($2))
order by m.consumer, m.arrival
limit $3
