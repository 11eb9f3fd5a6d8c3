-- The messages that a relay has settled in some of its shards and that a cursor may not have passed. $1 relay, $2 shards,
-- $3 the shards wanted.
select position, slot, tx::text as tx from outbox.settled_message where relay = $1 and (slot % $2) = any ($3)
