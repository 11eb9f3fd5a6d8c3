-- Has a held key tried again, now and afresh, and writes down who asked for it. Not of a retired relay: nobody would.
-- $1 relay, $2 position that names the hold, $3 who, $4 why or null. A row: done.
with redriven as (
    update outbox.held_key h
    set state = 'retrying', attempts = 0, next_attempt_at = clock_timestamp(), destination = null
    from outbox.relay r
    where h.relay = $1 and h.position = $2 and r.name = h.relay and r.state <> 'retired'
    returning h.position
)
insert into outbox.audit (who, action, relay, position, message_id, reason)
select $3, 'redrive', $1, d.position,
    (
        select m.id from outbox.held_message m
        where m.relay = $1 and m.held = d.position
        order by m.position
        limit 1
    ),
    $4
from redriven d
returning position
