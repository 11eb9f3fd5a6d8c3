-- The next messages of a window in one leaf: by transactions that began after `seen` was taken, visible in `until`, in
-- order of position. $1 xmax of `seen`, $2 `until`, $3 above this position, $4 up to this one, $5 at most so many,
-- $6 shards, $7 the shards wanted. The leaf's number is filled in.
select position, slot, id, correlation, causation, occurred_at, enqueued_at, source, topic, kind, key, headers, payload
from outbox.message_/*leaf*/
where position > $3 and position <= $4
    and tx >= $1::text::xid8 and pg_visible_in_snapshot(tx, $2::text::pg_snapshot)
    and (slot % $6) = any ($7)
order by position
limit $5
