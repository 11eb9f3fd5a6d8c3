-- Where the present era would end, and what speaks about it. Whoever restored a dump and then let services write has rows
-- of two lives in one era. Where a cursor is ahead of the transaction that wrote its row, which no life of a cluster brings
-- about, the row was restored by that transaction, and what was written since is known by its own: begun later, and not
-- after the row. Such messages, above the last one that is not so, belong to the new era; else the boundary is the end of all
-- positions drawn.
with present as (
    select c.era, c.system_identifier, c.first_position, pg_snapshot_xmax(pg_current_snapshot())::text::bigint as xmax
    from outbox.cluster c
    order by c.era desc
    limit 1
),
restored as (
    -- A row's 32 bits of the transaction id, and the rest from the snapshot.
    select max(p.xmax - ((p.xmax - c.xmin::text::bigint) & 4294967295)) as by
    from outbox.cursor c
    join present p on p.era = c.era
    where p.xmax - ((p.xmax - c.xmin::text::bigint) & 4294967295) between 3 and pg_snapshot_xmax(c.seen)::text::bigint - 1
),
drawn as (
    select coalesce(pg_sequence_last_value('outbox.message_position_seq'::regclass), 0) as sequence,
        coalesce((select max(m.position) from outbox.message m), 0) as log
),
before as (
    select m.position
    from outbox.message m
    cross join present p
    cross join restored r
    where r.by is not null
        and m.tx::text::bigint not between r.by + 1 and p.xmax - ((p.xmax - m.xmin::text::bigint) & 4294967295)
    order by m.position desc
    limit 1
),
since as (
    select count(*) as messages, min(m.position) as first_position
    from outbox.message m
    cross join present p
    where (select r.by from restored r) is not null
        and m.position > coalesce((select b.position from before b), 0) and m.position >= p.first_position
)
select p.era, p.system_identifier, (select system_identifier from pg_control_system()) as present_identifier,
    d.sequence, d.log, s.messages as written_since,
    coalesce(s.first_position, greatest(d.sequence, d.log, p.first_position - 1) + 1) as first_position,
    array(
        select format('%s (%s)', q.relay, q.label) from outbox.process q
        where q.expires_at > clock_timestamp()
        order by q.relay, q.label
    ) as processes,
    (
        select ceil(extract(epoch from max(q.expires_at) - clock_timestamp()))::bigint from outbox.process q
        where q.expires_at > clock_timestamp()
    ) as alive_for
from present p
cross join drawn d
cross join since s
