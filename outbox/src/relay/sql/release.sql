-- Lets keys go that hold nothing any more. $1 relay, then one array a column: $2 position that names the hold, $3 shard,
-- $4 epoch, which is looked at under a lock: a hold that another process has loaded is not taken from it. Answers those that
-- went, each with its messages that are settled and may be read again: persons have settled some. One row without a message:
-- none; no row of a key: it is held still.
with asked as materialized (
    select r.position, r.shard, r.epoch
    from unnest($2::bigint[], $3::smallint[], $4::bigint[]) as r (position, shard, epoch)
    join outbox.cursor c on c.relay = $1 and c.shard = r.shard and c.epoch = r.epoch
),
hold as materialized (
    -- It carries what is asked: two lists without statistics would be compared row by row.
    select h.position, asked.shard, asked.epoch
    from asked
    join outbox.held_key h on h.relay = $1 and h.position = asked.position
    order by h.position
    for update of h
),
owned as materialized (
    -- After the holds, as a record locks them. Few: it is joined to no list.
    select c.shard
    from outbox.cursor c
    join (select distinct hold.shard, hold.epoch from hold) asked on asked.shard = c.shard and asked.epoch = c.epoch
    where c.relay = $1
    order by c.shard
    for share of c
),
gone as (
    delete from outbox.held_key h
    using hold
    where h.relay = $1 and h.position = hold.position and hold.shard = any (array(select owned.shard from owned))
        and not exists (select from outbox.held_message m where m.relay = $1 and m.held = hold.position)
    returning h.position
)
select gone.position as held, s.position, s.slot, s.tx::text as tx
from gone
left join outbox.settled_message s on s.relay = $1 and s.held = gone.position
