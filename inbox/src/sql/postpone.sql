-- After a try that failed: the next one, or none until a person asks for it.
-- $1 consumer, $2 hold, $3 attempts written before the try, $4 attempts to keep, $5 state, $6 milliseconds to the next
-- one (null: parked), $7 last error (null: as it was)
update inbox.held_key
set attempts = $4::integer, state = $5::text, next_attempt_at = clock_timestamp() + $6::bigint::float8 * interval '1 millisecond',
    last_error = coalesce($7::text, last_error)
where consumer = $1::text and hold = $2::bigint and attempts = $3::integer and state = 'retrying'
