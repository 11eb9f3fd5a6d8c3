-- Messages are published that the cursors recorded in this transaction have not passed: they stay as settled, so that who reads
-- them again does not publish them. No hold is of their position, which names them here. $1 relay, $2 their positions.
insert into outbox.settled_message (relay, position, held, slot, tx)
select $1, m.position, m.position, m.slot, m.tx
from unnest($2::bigint[]) as delivered (position)
-- Looked up one by one: the log is long.
cross join lateral (
    select l.position, l.slot, l.tx
    from outbox.message l
    where l.position = delivered.position and ((l.position >> 20) & 15) = ((delivered.position >> 20) & 15)
    limit 1
) m
on conflict (relay, position) do nothing
