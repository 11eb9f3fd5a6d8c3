-- The held keys that wait for destinations, of each the oldest first. $1 relay, $2 shards, $3 the shards wanted, then one array
-- a column: $4 most keys, $5 destination; $6 holds that are not wanted.
select d.destination, h.position, h.slot, h.attempts
from unnest($4::bigint[], $5::text[]) as d (most, destination)
cross join lateral (
    select k.position, k.slot, k.attempts
    from outbox.held_key k
    where k.relay = $1 and k.destination = d.destination and (k.slot % $2) = any ($3) and k.position <> all ($6)
    order by k.position
    limit d.most
) h
