-- Lets a key go that holds nothing any more. $1 relay, $2 position that names the hold, $3 shard, $4 epoch. Answers which of
-- its messages are settled and may be read again: persons have settled some. One row of nulls: none; no row: it is held still.
with gone as (
    delete from outbox.held_key h
    using outbox.cursor c
    where h.relay = $1 and h.position = $2 and c.relay = $1 and c.shard = $3 and c.epoch = $4
        and not exists (select from outbox.held_message m where m.relay = $1 and m.held = $2)
    returning h.position
)
select s.position, s.slot, s.tx::text as tx
from gone
left join outbox.settled_message s on s.relay = $1 and s.held = gone.position
