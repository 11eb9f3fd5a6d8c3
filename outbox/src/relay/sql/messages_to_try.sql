-- Held messages, those of each key in order. $1 relay, $2 their positions.
select m.held, m.position, m.id, m.correlation, m.causation, m.occurred_at, m.source, m.topic, m.kind, m.key,
    m.headers::text as headers, m.payload
from pg_catalog.unnest($2::bigint[]) as wanted (position)
join outbox.held_message m on m.relay = $1 and m.position = wanted.position
order by m.held, m.position
