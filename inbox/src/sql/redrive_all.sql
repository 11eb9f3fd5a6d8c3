-- Has all parked keys of a consumer tried again now, as if they were new.
-- $1 consumer
update inbox.held_key
set state = 'retrying', attempts = 0, next_attempt_at = clock_timestamp()
where consumer = $1::text and state = 'parked'
