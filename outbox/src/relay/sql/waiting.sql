-- The held keys that wait for a destination, the oldest first. $1 relay, $2 shards, $3 the shards wanted, $4 at most so many,
-- $5 destination, $6 holds that are not wanted.
select position, slot, attempts
from outbox.held_key
where relay = $1 and destination = $5 and (slot % $2) = any ($3) and position <> all ($6)
order by position
limit $4
