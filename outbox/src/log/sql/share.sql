-- How the shards of a relay are shared: its living processes, its shards, those without a living owner. $1 relay.
select (select count(*) from outbox.process p where p.relay = $1 and p.expires_at > clock_timestamp()) as processes,
    count(*) as shards,
    count(*) filter (
        where not exists (select from outbox.process p where p.id = c.owner and p.expires_at > clock_timestamp())
    ) as free
from outbox.cursor c
where c.relay = $1
