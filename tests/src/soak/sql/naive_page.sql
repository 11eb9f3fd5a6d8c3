-- The next messages of a shard's window, past those that are done. $1 seen, $2 until, $3 bound, $4 shard, $5 done, $6 at
-- most so many.
select tx::text as tx, position, id, key, payload
from outbox.message
where pg_visible_in_snapshot(tx, $2::text::pg_snapshot)
    and ((tx >= pg_snapshot_xmax($1::text::pg_snapshot) and position > $3)
        or tx = any (array(select pg_snapshot_xip($1::text::pg_snapshot))))
    and slot % 4 = $4
order by position
offset $5 limit $6
