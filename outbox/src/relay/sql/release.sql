-- Lets keys go that hold nothing any more. $1 relay, then one array a column: $2 position that names the hold, $3 shard,
-- $4 epoch. Answers those that went, each with its messages that are settled and may be read again: persons have settled some.
-- One row without a message: none; no row of a key: it is held still.
with asked as materialized (
    select r.position
    from unnest($2::bigint[], $3::smallint[], $4::bigint[]) as r (position, shard, epoch)
    join outbox.cursor c on c.relay = $1 and c.shard = r.shard and c.epoch = r.epoch
),
hold as materialized (
    select h.position
    from outbox.held_key h
    where h.relay = $1 and h.position in (select asked.position from asked)
    order by h.position
    for update of h
),
gone as (
    delete from outbox.held_key h
    using hold
    where h.relay = $1 and h.position = hold.position
        and not exists (select from outbox.held_message m where m.relay = $1 and m.held = hold.position)
    returning h.position
)
select gone.position as held, s.position, s.slot, s.tx::text as tx
from gone
left join outbox.settled_message s on s.relay = $1 and s.held = gone.position
