-- The keys that a relay holds in some of its shards. $1 relay, $2 shards, $3 the shards wanted.
select position, key, destination from outbox.held_key where relay = $1 and (slot % $2) = any ($3)
