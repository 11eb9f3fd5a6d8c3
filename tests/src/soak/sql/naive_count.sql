-- So many more messages of the open window are published, if the shard is still ours. $1 shard, $2 how many, $3 epoch.
update soak.shard set done = done + $2 where shard = $1 and epoch = $3
