-- The keys that relay $1 holds, oldest first, each with the number of its messages and the first of them. A retired relay
-- tries nothing: whatever it holds waits for a person.
select h.position, h.key,
    case when r.state = 'retired' then 'parked' else h.state end as state,
    h.attempts,
    case when r.state = 'retired' then null else h.next_attempt_at end as next_attempt_at,
    h.last_error, h.held_at, h.reason, h.destination,
    (select count(*) from outbox.held_message m where m.relay = h.relay and m.held = h.position) as messages,
    first.position as first_position, first.id as first, first.topic, first.kind
from outbox.held_key h
join outbox.relay r on r.name = h.relay
left join lateral (
    select m.position, m.id, m.topic, m.kind from outbox.held_message m
    where m.relay = h.relay and m.held = h.position
    order by m.position
    limit 1
) first on true
where h.relay = $1
order by h.position
