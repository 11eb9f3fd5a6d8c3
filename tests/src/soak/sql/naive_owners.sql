-- Who owns each shard of the naive relay that was ever owned, under which epoch, and when the lease ends (in seconds).
select s.shard, s.epoch, s.owner, extract(epoch from s.expires_at)::float8 as expires_at,
    extract(epoch from clock_timestamp())::float8 as now
from soak.shard s
where s.epoch > 0
