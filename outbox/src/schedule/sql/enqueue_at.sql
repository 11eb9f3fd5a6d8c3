-- Schedules messages in the caller's transaction, in the order of the arrays. One array a column, all of one length:
-- $1 id, $2 correlation, $3 causation, $4 occurred_at, $5 source (null: the database's), $6 topic, $7 kind, $8 key,
-- $9 headers, $10 payload; $11 when all of them are due.
insert into outbox.scheduled_message (
    due_at, id, correlation, causation, occurred_at, source, topic, kind, key, headers, payload)
select $11::timestamptz, m.id, m.correlation, m.causation, m.occurred_at,
    coalesce(m.source, (select o.source from outbox.origin o)), m.topic, m.kind, m.key, m.headers::jsonb, m.payload
from unnest(
    $1::uuid[], $2::uuid[], $3::uuid[], $4::timestamptz[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
    $10::bytea[]
) as m (id, correlation, causation, occurred_at, source, topic, kind, key, headers, payload)
