-- The messages of one workflow in the log, in order, and which relays have passed them. $1 correlation, $2 most rows.
-- Passed is what the cursor says: in an era before its own, or visible in `seen`, or in `until` and not after `after`.
select m.position, m.id, m.correlation, m.causation, m.occurred_at, m.enqueued_at, m.source, m.topic, m.kind, m.key,
    coalesce(p.passed, '{}') as passed, coalesce(p.pending, '{}') as pending
from outbox.message m
cross join lateral (
    select array_agg(c.relay order by c.relay) filter (where c.passed) as passed,
        array_agg(c.relay order by c.relay) filter (where not c.passed) as pending
    from (
        select c.relay,
            case
                when e.era <> c.era then e.era < c.era
                else pg_visible_in_snapshot(m.tx, c.seen)
                    or (c.until is not null and pg_visible_in_snapshot(m.tx, c.until) and m.position <= c.after)
            end as passed
        from outbox.cursor c
        join outbox.relay r on r.name = c.relay and r.state <> 'retired'
        cross join (select max(l.era) as era from outbox.cluster l where l.first_position <= m.position) e
        where c.shard = m.slot % r.shards
    ) c
) p
where m.correlation = $1
order by m.position
limit $2
