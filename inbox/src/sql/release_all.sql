-- Releases held keys of which no message waits; the others are due at once. After `release_lock_all`, in its transaction.
-- Returns how many were released.
-- $1 consumer, $2 holds that are locked, $3 process
with released as (
    delete from inbox.held_key
    where consumer = $1::text and hold = any ($2::bigint[])
        and not exists (
            select from inbox.held_message
            where held_message.consumer = $1::text and held_message.hold = held_key.hold
        )
    returning 1
), due as (
    update inbox.held_key
    set attempts = 0, next_attempt_at = clock_timestamp(), tried_by = null
    where consumer = $1::text and hold = any ($2::bigint[]) and state = 'retrying'
        and (tried_by is null or tried_by = $3::uuid)
        and exists (
            select from inbox.held_message
            where held_message.consumer = $1::text and held_message.hold = held_key.hold
        )
)
select count(*) from released
