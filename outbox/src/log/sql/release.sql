-- Hands over all shards of a process, so that another takes them at once. $1 relay, $2 process.
update outbox.cursor set owner = null, crashes = 0 where relay = $1 and owner = $2
