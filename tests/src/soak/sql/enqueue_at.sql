-- The planted writers: messages at positions drawn before. One array a column: $1 position, $2 id, $3 key, $4 payload.
insert into outbox.message (position, id, correlation, source, topic, kind, key, payload) overriding system value
select m.position, m.id, m.id, '/soak', 'soak', 'soak.fact', m.key, m.payload
from unnest($1::bigint[], $2::uuid[], $3::text[], $4::bytea[]) as m (position, id, key, payload)
