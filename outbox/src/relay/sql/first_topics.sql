-- The topics of what waits for destinations: of the first message of each of the next held keys that wait for one; with the
-- position of the last of these keys. No row: there are no more. $1 relay, $2 shards, $3 the shards wanted, $4 position above
-- which, $5 most keys.
with part as materialized (
    select h.position, h.destination
    from outbox.held_key h
    where h.relay = $1 and h.destination is not null and (h.slot % $2) = any ($3) and h.position > $4
    order by h.position
    limit $5
)
select distinct p.destination, first.topic, (select pg_catalog.max(l.position) from part l) as last
from part p
left join lateral (
    select m.topic from outbox.held_message m
    where m.relay = $1 and m.held = p.position
    order by m.position
    limit 1
) first on true
