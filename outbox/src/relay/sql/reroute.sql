-- Keys that wait for a destination wait for another one, because their first message's topic goes there now. $1 relay,
-- $2 shards, $3 the shards wanted, $4 destination, $5 topic, $6 destination from now on, $7 position above which, $8 position
-- up to which.
with hold as materialized (
    -- In the order in which others lock them.
    select h.position
    from outbox.held_key h
    where h.relay = $1 and h.destination = $4 and (h.slot % $2) = any ($3)
        and h.position > $7 and h.position <= $8
        and (
            select m.topic from outbox.held_message m
            where m.relay = h.relay and m.held = h.position
            order by m.position
            limit 1
        ) = $5
    order by h.position
    for no key update of h
)
update outbox.held_key h
set destination = $6
from hold
where h.relay = $1 and h.position = hold.position and h.destination = $4
