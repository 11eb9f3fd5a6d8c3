-- Held messages, those of each key in order. $1 relay, $2 their positions.
select m.held, m.position, m.id, m.correlation, m.causation, m.occurred_at, m.source, m.topic, m.kind, m.key,
    m.headers::text as headers, m.payload
from pg_catalog.unnest($2::bigint[]) as wanted (position)
-- One by one: before the table's statistics know of many held messages, all would be read to find these.
cross join lateral (
    select * from outbox.held_message h where h.relay = $1 and h.position = wanted.position limit 1
) m
order by m.held, m.position
