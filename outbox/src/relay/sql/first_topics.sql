-- The topics of what waits for destinations: of the first message of each held key that waits for one. $1 relay, $2 shards,
-- $3 the shards wanted.
select distinct h.destination, first.topic
from outbox.held_key h
cross join lateral (
    select m.topic from outbox.held_message m
    where m.relay = h.relay and m.held = h.position
    order by m.position
    limit 1
) first
where h.relay = $1 and h.destination is not null and (h.slot % $2) = any ($3) and first.topic is not null
