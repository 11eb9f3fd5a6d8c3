-- Has several held keys tried again now, as if they were new.
-- A process that lives is done with its try: another that claims the key must not take it for dead. One that has died in
-- its try stays named, so that the message goes to the quarantine.
-- $1 consumer, $2 holds
update inbox.held_key
set state = 'retrying', attempts = 0, next_attempt_at = clock_timestamp(),
    tried_by = case
        when exists (
            select from inbox.process
            where process.id = held_key.tried_by
                and process.expires_at between clock_timestamp() and clock_timestamp() + interval '1 minute'
        ) then null
        else held_key.tried_by
    end
where consumer = $1::text and hold = any ($2::bigint[])
