-- Who has acquired which shard from whom and when (in seconds), each shard's in their order.
select shard, previous, owner, label, extract(epoch from at)::float8 as at from soak.acquisition order by shard, epoch
