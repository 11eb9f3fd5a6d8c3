-- Of several locked keys, those of which no message waits are held no longer. Returns how many those were.
-- $1 consumer, $2 holds
with released as (
    delete from inbox.held_key
    where consumer = $1::text and hold = any ($2::bigint[])
        and not exists (
            select from inbox.held_message
            where held_message.consumer = held_key.consumer and held_message.hold = held_key.hold
        )
    returning 1
)
select count(*) as keys from released
