-- The next keys that a relay holds in some of its shards. Of one that its row does not take, the first copy has the key.
-- $1 relay, $2 shards, $3 the shards wanted, $4 position above which, $5 most keys.
select h.position,
    case when h.key is null
        then (select m.key from outbox.held_message m where m.relay = $1 and m.held = h.position order by m.position limit 1)
        else h.key
    end as key,
    h.destination
from outbox.held_key h
where h.relay = $1 and (h.slot % $2) = any ($3) and h.position > $4
order by h.position
limit $5
