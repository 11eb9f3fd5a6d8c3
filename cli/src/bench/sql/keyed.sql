-- A thousand messages in one transaction, each with the next key. $1 bytes of payload, $2 number of the first, $3 keys.
insert into outbox.message (id, correlation, source, topic, kind, key, payload)
select made.id, made.id, '/bench', 'bench', 'bench.filled', 'key-' || (($2::bigint + n) % $3::bigint),
    convert_to(repeat('x', $1::integer), 'UTF8')
from generate_series(1, 1000) as n
cross join lateral (select outbox.uuid_v7() as id where n > 0) as made
