-- Planted: in the order of transaction ids, up to the oldest that is running. $1, $2 the last one read.
select tx::text as tx, position, id, key, payload
from outbox.message
where (tx, position) > ($1::text::xid8, $2) and tx < pg_snapshot_xmin(pg_current_snapshot())
order by tx, position
