-- Where messages stand, and since when (in seconds). $1 their ids.
select m.id, (m.slot % (select r.shards from outbox.relay r where r.name = 'default'))::smallint as shard,
    extract(epoch from m.enqueued_at)::float8 as enqueued_at
from outbox.message m
where m.id = any ($1)
