-- What has committed lately in the shards that a process owns. $1 its label.
select m.id
from outbox.message m
where m.position > coalesce(pg_sequence_last_value('outbox.message_position_seq'::regclass), 0) - 5000
    and (m.slot % (select r.shards from outbox.relay r where r.name = 'default')) in (
        select c.shard
        from outbox.cursor c
        join outbox.process p on p.id = c.owner
        where c.relay = 'default' and p.label = $1
    )
