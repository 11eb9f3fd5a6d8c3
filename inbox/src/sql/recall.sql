-- Makes held keys due whose next attempt is later than any could be written to be: a clock was ahead. Those that a process
-- tries are its own, or due when it is found dead. Waits for no lock.
-- $1 consumer, $2 milliseconds to the latest next attempt that can be written
with late as materialized (
    select hold from inbox.held_key
    where consumer = $1::text and state = 'retrying' and tried_by is null
        and next_attempt_at > clock_timestamp() + $2::bigint::float8 * interval '1 millisecond'
    order by hold
    for no key update skip locked
)
update inbox.held_key set next_attempt_at = clock_timestamp()
from late
where held_key.consumer = $1::text and held_key.hold = late.hold
