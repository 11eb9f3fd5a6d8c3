-- Gives up the first message of a parked key and has the next one tried. Not of one that is being tried: its owner may
-- be publishing that message now. $1 relay, $2 position that names the hold. Answers the message's id.
with hold as (
    update outbox.held_key
    set state = 'retrying', attempts = 0, next_attempt_at = clock_timestamp()
    where relay = $1 and position = $2 and state = 'parked'
    returning relay, position
)
delete from outbox.held_message m
using hold
where m.relay = hold.relay and m.position = (
    select min(first.position) from outbox.held_message first where first.relay = hold.relay and first.held = hold.position
)
returning m.id
