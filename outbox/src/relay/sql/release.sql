-- Lets keys go that hold nothing any more; answers those that went. $1 relay, then one array a column: $2 position that names
-- the hold, $3 shard, $4 epoch.
delete from outbox.held_key h
using unnest($2::bigint[], $3::smallint[], $4::bigint[]) as r (position, shard, epoch), outbox.cursor c
where h.relay = $1 and h.position = r.position and c.relay = $1 and c.shard = r.shard and c.epoch = r.epoch
    and not exists (select from outbox.held_message m where m.relay = $1 and m.held = r.position)
returning h.position
