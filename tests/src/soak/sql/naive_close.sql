-- All of the open window is published. $1 shard, $2 epoch.
update soak.shard
set seen = until, bound = until_bound, until = null, until_bound = null, done = 0
where shard = $1 and epoch = $2 and until is not null
