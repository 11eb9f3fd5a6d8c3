-- The next messages of a window in one leaf: by transactions that began after `seen` was taken, visible in `until`, in
-- order of position. $1 xmax of `seen`, $2 `until`, $3 above this position, $4 up to this one, $5 at most so many,
-- $6 shards, $7 the shards wanted. The leaf's number is filled in.
-- Of a leaf that was never analyzed the planner thinks that hardly anything lies between two positions, and less of it is
-- visible: it would read and sort the whole backlog for each page. It thinks better of a row comparison and a coalesce.
select position, slot, id, correlation, causation, occurred_at, enqueued_at, source, topic, kind, key, headers, payload
from outbox.message_/*leaf*/
where position > $3 and (position, 0) <= ($4, 0)
    and coalesce(
        tx >= $1::text::xid8 and pg_catalog.pg_visible_in_snapshot(tx, $2::text::pg_snapshot) and (slot % $6) = any ($7), false
    )
order by position
limit $5
