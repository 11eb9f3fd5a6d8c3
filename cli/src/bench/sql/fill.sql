-- A thousand messages in one transaction. $1 bytes of payload.
insert into outbox.message (id, correlation, source, topic, kind, key, payload)
select made.id, made.id, '/bench', 'bench', 'bench.filled', 'key-' || (n * 7919 % 5000), convert_to(repeat('x', $1), 'UTF8')
from generate_series(1, 1000) as n
cross join lateral (select outbox.uuid_v7() as id where n > 0) as made
