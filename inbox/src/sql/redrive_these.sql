-- Has several held keys tried again now, as if they were new.
-- $1 consumer, $2 holds
update inbox.held_key
set state = 'retrying', attempts = 0, next_attempt_at = clock_timestamp()
where consumer = $1::text and hold = any ($2::bigint[])
