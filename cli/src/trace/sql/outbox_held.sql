-- What relays hold back of some workflows. $1 correlations, $2 most rows.
-- The first of a hold is the one that failed; the others wait behind it.
-- A time that is none, from before its constraint, is not said.
select m.id, m.correlation, m.causation,
    case when m.occurred_at between '1970-01-01 00:00:00+00' and '9999-12-31 23:59:59+00' then m.occurred_at end as occurred_at,
    case when m.enqueued_at between '1970-01-01 00:00:00+00' and '9999-12-31 23:59:59+00' then m.enqueued_at end as enqueued_at,
    m.source, m.topic, m.kind, m.key,
    m.relay as name, k.state = 'parked' as parked, k.attempts, k.next_attempt_at, k.last_error, k.held_at,
    exists (
        select from outbox.held_message f
        where f.relay = m.relay and f.held = m.held and f.position < m.position
    ) as behind
from outbox.held_message m
join outbox.held_key k on k.relay = m.relay and k.position = m.held
where m.correlation = any ($1) and m.id is not null
order by m.relay, m.position
limit $2
