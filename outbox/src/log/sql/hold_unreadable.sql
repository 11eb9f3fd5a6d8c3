-- Copies messages that cannot be read to their held keys, as the log has them. After lock_holds.sql. $1 relay, one array a
-- column: $2 position, $3 the held key's position.
insert into outbox.held_message (
    relay, position, held, id, correlation, causation, occurred_at, enqueued_at, source, topic, kind, key, headers, payload,
    bytes, tx
)
select $1, m.position, u.held, m.id, m.correlation, m.causation, m.occurred_at, m.enqueued_at, m.source, m.topic, m.kind,
    m.key, m.headers, m.payload, coalesce(octet_length(m.payload), 0), m.tx
from unnest($2::bigint[], $3::bigint[]) as u (position, held)
join outbox.message m on m.position = u.position and ((m.position >> 20) & 15) = ((u.position >> 20) & 15)
where not exists (select from outbox.settled_message s where s.relay = $1 and s.position = m.position)
on conflict (relay, position) do nothing
