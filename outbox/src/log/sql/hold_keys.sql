-- Holds back keys, each from the message at its position. $1 relay, then one array a column: $2 position, $3 slot, $4 key,
-- $5 state, $6 attempts, $7 seconds until the next (null: parked), $8 error, $9 reason, $10 destination.
insert into outbox.held_key (
    relay, position, slot, key, state, attempts, next_attempt_at, last_error, reason, destination
)
select $1, h.position, h.slot, h.key, h.state, h.attempts, clock_timestamp() + make_interval(secs => h.seconds), h.error,
    h.reason, h.destination
from unnest(
    $2::bigint[], $3::smallint[], $4::text[], $5::text[], $6::integer[], $7::float8[], $8::text[], $9::text[], $10::text[]
) as h (position, slot, key, state, attempts, seconds, error, reason, destination)
