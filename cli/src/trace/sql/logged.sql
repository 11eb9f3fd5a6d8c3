-- The messages of one workflow in the log, in order, and which relays have passed them. $1 correlation, $2 most rows.
-- Passed is what the cursor says: in an era before its own, or visible in `seen`, or in `until` and not after `after`.
-- A time that is none, from before its constraint, is not said.
select m.position, m.id, m.correlation, m.causation,
    case when m.occurred_at between '1970-01-01 00:00:00+00' and '9999-12-31 23:59:59+00' then m.occurred_at end as occurred_at,
    case when m.enqueued_at between '1970-01-01 00:00:00+00' and '9999-12-31 23:59:59+00' then m.enqueued_at end as enqueued_at,
    m.source, m.topic, m.kind, m.key,
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
