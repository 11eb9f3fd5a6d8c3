-- Who owns each shard now, under which epoch, and when its lease ends, by the database's clock (in seconds).
select c.shard, c.epoch, c.owner, extract(epoch from p.expires_at)::float8 as expires_at,
    extract(epoch from clock_timestamp())::float8 as now
from outbox.cursor c
left join outbox.process p on p.id = c.owner
where c.relay = 'default'
