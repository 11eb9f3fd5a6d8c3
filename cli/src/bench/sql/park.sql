-- Parks as many keys with a message each. $1 consumer, $2 keys.
with parked as (
    insert into inbox.held_key (consumer, key, state, attempts, last_error)
    select $1::text, 'held-' || n, 'parked', 1, 'bench' from generate_series(1, $2::bigint) as n
    returning hold, key
)
insert into inbox.held_message (
    consumer, hold, message_id, correlation, occurred_at, source, topic, kind, key, headers, payload)
select $1::text, parked.hold, made.id, made.id, clock_timestamp(), '/bench', 'bench', 'bench.filled', parked.key,
    '{}'::jsonb, convert_to(repeat('x', 256), 'UTF8')
from parked
cross join lateral (select outbox.uuid_v7() as id where parked.hold > 0) as made
