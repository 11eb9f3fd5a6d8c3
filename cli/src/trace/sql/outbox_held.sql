-- What relays hold back of some workflows. $1 correlations, $2 most rows.
-- The first of a hold is the one that failed; the others wait behind it.
select m.id, m.correlation, m.causation, m.occurred_at, m.enqueued_at, m.source, m.topic, m.kind, m.key,
    m.relay as name, k.state = 'parked' as parked, k.attempts, k.next_attempt_at, k.last_error, k.held_at,
    exists (
        select from outbox.held_message f
        where f.relay = m.relay and f.held = m.held and f.position < m.position
    ) as behind
from outbox.held_message m
join outbox.held_key k on k.relay = m.relay and k.position = m.held
where m.correlation = any ($1)
order by m.relay, m.position
limit $2
