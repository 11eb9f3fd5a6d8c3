-- Waits for the tries under way of the keys that hold a message of a kind, and keeps appenders out.
-- $1 consumer, $2 kind
select hold
from inbox.held_key
where consumer = $1::text
    and exists (
        select from inbox.held_message
        where held_message.consumer = held_key.consumer and held_message.hold = held_key.hold
            and held_message.kind = $2::text
    )
order by hold
for update
