-- Messages in one transaction, each of another key. $1 bytes of payload, $2 messages, $3 topic.
insert into outbox.message (id, correlation, source, topic, kind, key, payload)
select made.id, made.id, '/bench', $3::text, 'bench.filled', $3::text || '-' || n, convert_to(repeat('x', $1::integer), 'UTF8')
from generate_series(1, $2::bigint) as n
cross join lateral (select outbox.uuid_v7() as id where n > 0) as made
