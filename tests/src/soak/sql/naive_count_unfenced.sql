-- Planted: so many more messages of the open window are published, whosever the shard and its window are by now.
-- $1 shard, $2 how many.
update soak.shard set done = done + $2 where shard = $1
