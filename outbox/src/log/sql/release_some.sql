-- Hands over some shards of a process, so that another takes them at once. $1 relay, $2 process, $3 shards.
update outbox.cursor set owner = null, crashes = 0 where relay = $1 and owner = $2 and shard = any ($3)
