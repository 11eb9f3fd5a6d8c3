-- Ends a try of a held key that did not succeed: when the next one is due, or none until a person asks for it. If a
-- person has decided about the key meanwhile, only the try is ended. If another process has claimed it, or the message of
-- the try waits no longer, nothing is done: it is the next message's try that may be under way.
-- $1 consumer, $2 hold, $3 attempts written before the try, $4 attempts to keep, $5 state, $6 milliseconds to the next
-- one (null: parked), $7 last error (null: as it was), $8 process, $9 the message that leaves the quarantine, because
-- its try has ended (null: none), $10 the arrival of the message that was tried
with ended as (
    update inbox.held_key
    set attempts = case when mine.unchanged then $4::integer else held_key.attempts end,
        state = case when mine.unchanged then $5::text else held_key.state end,
        next_attempt_at = case
            when mine.unchanged then clock_timestamp() + $6::bigint::float8 * interval '1 millisecond'
            else held_key.next_attempt_at
        end,
        last_error = case when mine.unchanged then coalesce($7::text, held_key.last_error) else held_key.last_error end,
        tried_by = null
    from (
        select hold, attempts = $3::integer and state = 'retrying' as unchanged
        from inbox.held_key
        where consumer = $1::text and hold = $2::bigint and tried_by = $8::uuid
            and exists (
                select from inbox.held_message
                where held_message.consumer = $1::text and held_message.hold = $2::bigint
                    and held_message.arrival = $10::bigint
            )
        for no key update
    ) as mine
    where held_key.consumer = $1::text and held_key.hold = mine.hold
    returning 1
)
delete from inbox.quarantine
where consumer = $1::text and message_id = $9::uuid and exists (select from ended)
