-- Has all parked keys of a consumer tried again now, as if they were new, and writes down who asked for it. The keys are
-- locked in one order, as by `lock_kind`: two people would otherwise wait for each other.
-- A process that lives is done with its try: another that claims the key must not take it for dead. One that has died in
-- its try stays named, so that the message goes to the quarantine.
-- $1 consumer, $2 who, $3 why (or null)
with locked as materialized (
    select hold from inbox.held_key
    where consumer = $1::text and state = 'parked'
    order by hold
    for no key update
), redriven as (
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
    from locked
    where held_key.consumer = $1::text and held_key.hold = locked.hold
    returning held_key.hold
)
insert into inbox.audit (who, action, consumer, hold, message_id, reason)
select $2::text, 'redrive', $1::text, redriven.hold,
    (
        select message_id
        from inbox.held_message m
        where m.consumer = $1::text and m.hold = redriven.hold
        order by arrival
        limit 1
    ),
    $3::text
from redriven
