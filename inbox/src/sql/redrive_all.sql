-- Has all parked keys of a consumer tried again now, as if they were new, and writes down who asked for it.
-- $1 consumer, $2 who, $3 why (or null)
with redriven as (
    update inbox.held_key
    set state = 'retrying', attempts = 0, next_attempt_at = clock_timestamp()
    where consumer = $1::text and state = 'parked'
    returning hold
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
