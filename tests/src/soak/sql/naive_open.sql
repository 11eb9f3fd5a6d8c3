-- Opens the next window of a shard. $1 shard, $2 epoch, $3 its end, $4 the bound after it.
update soak.shard set until = $3::text::pg_snapshot, until_bound = $4, done = 0 where shard = $1 and epoch = $2
