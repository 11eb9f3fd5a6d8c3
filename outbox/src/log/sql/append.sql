-- Appends messages to the log of a broker's database, in the order of the arrays, as a transaction of its own whose
-- commit waits for the disk. One array a column, all of one length: $1 id, $2 correlation, $3 causation,
-- $4 occurred_at, $5 source (null: the database's), $6 topic, $7 kind, $8 key, $9 headers, $10 payload.
with waiting as materialized (
    select case when current_setting('synchronous_commit') = 'off' then set_config('synchronous_commit', 'on', true) end
)
insert into outbox.message (id, correlation, causation, occurred_at, source, topic, kind, key, headers, payload)
select m.id, m.correlation, m.causation, m.occurred_at, coalesce(m.source, (select o.source from outbox.origin o)),
    m.topic, m.kind, m.key, m.headers::jsonb, m.payload
from waiting
cross join unnest(
    $1::uuid[], $2::uuid[], $3::uuid[], $4::timestamptz[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
    $10::bytea[]
) as m (id, correlation, causation, occurred_at, source, topic, kind, key, headers, payload)
