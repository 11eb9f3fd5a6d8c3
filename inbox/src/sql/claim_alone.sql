-- Takes one held key that is due and whose first message is in quarantine, and counts its try before it begins. The
-- caller tries nothing else meanwhile, so a death during this try is the message's. A try by this process, which lives,
-- that did not end is made again and counted once. No row: none is due.
-- $1 consumer, $2 milliseconds a try may last, $3 the kinds that this process handles, $4 process
with due as materialized (
    select held_key.hold, suspect.arrival
    from inbox.quarantine
    join inbox.held_message as suspect
        on suspect.consumer = quarantine.consumer and suspect.message_id = quarantine.message_id
    join inbox.held_key on held_key.consumer = suspect.consumer and held_key.hold = suspect.hold
    where quarantine.consumer = $1::text and coalesce(suspect.kind = any ($3::text[]), true)
        and held_key.state = 'retrying' and held_key.next_attempt_at <= statement_timestamp()
        and not exists (
            select from inbox.held_message as earlier
            where earlier.consumer = suspect.consumer and earlier.hold = suspect.hold
                and earlier.arrival < suspect.arrival
        )
    order by held_key.next_attempt_at
    limit 1
    for no key update of held_key skip locked
), claimed as (
    update inbox.held_key
    set attempts = case
            when held_key.tried_by = $4::uuid then greatest(held_key.attempts, 1) else held_key.attempts + 1
        end,
        tried_by = $4::uuid,
        next_attempt_at = clock_timestamp() + $2::bigint::float8 * interval '1 millisecond'
    from due
    where held_key.consumer = $1::text and held_key.hold = due.hold
    returning held_key.hold, held_key.attempts, held_key.last_error, due.arrival
)
select
    claimed.hold, claimed.attempts, claimed.last_error, message.arrival, message.received_at, message.message_id,
    message.correlation, message.causation, message.occurred_at, message.source, message.topic, message.kind,
    message.key, message.headers::text as headers, message.payload, message.late
from claimed
join inbox.held_message as message on message.consumer = $1::text and message.arrival = claimed.arrival
