-- Gives a shard back. $1 shard, $2 epoch.
update soak.shard set owner = null where shard = $1 and epoch = $2
