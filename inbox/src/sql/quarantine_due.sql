-- Whether a held key is due whose first message is in quarantine. It begins with the quarantine, which is small: without
-- statistics the planner would look at every key that is due, but for `offset` and `limit`. One id may be held for several
-- sources; a message that could only be kept as bytes has no kind.
-- $1 consumer, $2 the kinds that this process handles
with suspect as materialized (
    select held.hold, held.arrival
    from inbox.quarantine
    cross join lateral (
        select hold, arrival, kind from inbox.held_message
        where held_message.consumer = $1::text and held_message.message_id = quarantine.message_id
        offset 0
    ) as held
    where quarantine.consumer = $1::text and coalesce(held.kind = any ($2::text[]), true)
)
select exists (
    select from suspect
    cross join lateral (
        select state, next_attempt_at from inbox.held_key
        where held_key.consumer = $1::text and held_key.hold = suspect.hold
        limit 1
    ) as key
    where key.state = 'retrying' and key.next_attempt_at <= statement_timestamp()
        and not exists (
            select from inbox.held_message as earlier
            where earlier.consumer = $1::text and earlier.hold = suspect.hold and earlier.arrival < suspect.arrival
        )
) as due
