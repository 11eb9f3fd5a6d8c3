-- Copies messages of the log to their held keys, but for what is settled. After lock_holds.sql. $1 relay, then one array a
-- column: $2 position, $3 the held key's position, then the message.
insert into outbox.held_message (
    relay, position, held, id, correlation, causation, occurred_at, enqueued_at, source, topic, kind, key, headers, payload,
    bytes, tx
)
select $1, m.position, m.held, m.id, m.correlation, m.causation, m.occurred_at, m.enqueued_at, m.source, m.topic, m.kind,
    m.key, m.headers::jsonb, m.payload, octet_length(m.payload), logged.tx
from unnest(
    $2::bigint[], $3::bigint[], $4::uuid[], $5::uuid[], $6::uuid[], $7::timestamptz[], $8::timestamptz[], $9::text[],
    $10::text[], $11::text[], $12::text[], $13::text[], $14::bytea[]
) as m (
    position, held, id, correlation, causation, occurred_at, enqueued_at, source, topic, kind, key, headers, payload
)
-- Without its row in the log it has been passed: the log keeps what a cursor has not. Looked up one by one: the log is long.
left join lateral (
    select l.tx
    from outbox.message l
    where l.position = m.position and ((l.position >> 20) & 15) = ((m.position >> 20) & 15)
    limit 1
) logged on true
where not exists (select from outbox.settled_message s where s.relay = $1 and s.position = m.position)
on conflict (relay, position) do nothing
