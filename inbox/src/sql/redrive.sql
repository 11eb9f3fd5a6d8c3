-- Has a held key tried again now, as if it were new.
-- $1 consumer, $2 hold
update inbox.held_key
set state = 'retrying', attempts = 0, next_attempt_at = clock_timestamp()
where consumer = $1::text and hold = $2::bigint
