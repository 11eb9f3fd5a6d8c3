-- Says what a process publishes to, and answers the other living processes of its relay that publish elsewhere. $1 relay,
-- $2 process, $3 the destination for a person, $4 its fingerprint, $5 whether the relay is a consumer group.
with said as (
    update outbox.process set destination = $3, fingerprint = $4 where id = $2
),
known as (
    update outbox.relay
    set destination = $3, is_group = $5
    where name = $1 and (destination is distinct from $3 or is_group <> $5)
)
select p.label, coalesce(p.destination, '?') as destination
from outbox.process p
where p.relay = $1 and p.id <> $2
    and p.expires_at between clock_timestamp() and clock_timestamp() + p.lasts + interval '1 minute'
    and p.fingerprint <> $4
order by p.label
