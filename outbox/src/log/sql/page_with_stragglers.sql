-- As page.sql, with the messages of transactions that were running when `seen` was taken and have finished since: they
-- lie below the lower bound of what is new. $8 their ids, $9 above this position for them.
-- `order by` and `limit` stand inside both branches, else each page would sort the whole backlog. The row comparison
-- makes the planner walk the index on (tx, position) and not the one on position; the coalesce, as in page.sql, makes it
-- walk and not sort.
select * from (
    (
        select position, slot, id, correlation, causation, occurred_at, enqueued_at, source, topic, kind, key, headers,
            payload
        from outbox.message_/*leaf*/
        where position > $3 and (position, 0) <= ($4, 0)
            and coalesce(
                tx >= $1::text::xid8 and pg_catalog.pg_visible_in_snapshot(tx, $2::text::pg_snapshot) and (slot % $6) = any ($7), false
            )
        order by position
        limit $5
    )
    union all
    (
        select late.*
        from pg_catalog.unnest($8::text[]::xid8[]) as straggler (tx)
        cross join lateral (
            select position, slot, id, correlation, causation, occurred_at, enqueued_at, source, topic, kind, key,
                headers, payload
            from outbox.message_/*leaf*/ m
            where (m.tx, m.position) > (straggler.tx, $9) and (m.tx, m.position) <= (straggler.tx, $4)
                and coalesce((slot % $6) = any ($7), false)
            order by m.tx, m.position
            limit $5
        ) as late
        order by position
        limit $5
    )
) as page
order by position
limit $5
