-- What is visible in $2 and was not in $1, above the bound $3 or, if it ran when $1 was taken, anywhere.
select tx::text as tx, position, id, key, payload
from outbox.message
where pg_visible_in_snapshot(tx, $2::text::pg_snapshot)
    and ((tx >= pg_snapshot_xmax($1::text::pg_snapshot) and position > $3)
        or tx = any (array(select pg_snapshot_xip($1::text::pg_snapshot))))
order by position
