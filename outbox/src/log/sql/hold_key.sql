-- Holds back a key, from the message at position $2. $1 relay, $3 slot, $4 key, $5 state, $6 attempts, $7 seconds until
-- the next (null: parked), $8 error.
insert into outbox.held_key (relay, position, slot, key, state, attempts, next_attempt_at, last_error)
values ($1, $2, $3, $4, $5, $6, clock_timestamp() + make_interval(secs => $7), $8)
