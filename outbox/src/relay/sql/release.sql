-- Lets a key go that holds nothing any more. $1 relay, $2 position that names the hold, $3 shard, $4 epoch.
delete from outbox.held_key h
using outbox.cursor c
where h.relay = $1 and h.position = $2 and c.relay = $1 and c.shard = $3 and c.epoch = $4
    and not exists (select from outbox.held_message m where m.relay = $1 and m.held = $2)
