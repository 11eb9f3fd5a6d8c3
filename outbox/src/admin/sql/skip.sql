-- Gives up the first message of a parked key, has the next one tried, and writes down who decided it. Not of a key that is
-- being tried: its owner may be publishing that message now. A retired relay tries nothing: of its keys any is given up,
-- and one without messages is let go here, since no process will. $1 relay, $2 position that names the hold, $3 who,
-- $4 why. Answers the message's id.
with hold as (
    select h.position, r.state = 'retired' as retired
    from outbox.held_key h
    join outbox.relay r on r.name = h.relay
    where h.relay = $1 and h.position = $2 and (h.state = 'parked' or r.state = 'retired')
    for update of h
),
waiting as (
    select m.position
    from hold
    join outbox.held_message m on m.relay = $1 and m.held = hold.position
    order by m.position
    limit 2
),
gone as (
    delete from outbox.held_message m
    where m.relay = $1 and m.position = (select min(w.position) from waiting w)
    returning m.id, m.position
),
tried as (
    update outbox.held_key h
    set state = 'retrying', attempts = 0, next_attempt_at = clock_timestamp()
    from hold
    where h.relay = $1 and h.position = hold.position and not hold.retired
),
let_go as (
    delete from outbox.held_key h
    using hold
    where h.relay = $1 and h.position = hold.position and hold.retired and (select count(*) from waiting) < 2
)
insert into outbox.audit (who, action, relay, position, message_id, reason)
select $3, 'skip', $1, gone.position, gone.id, $4 from gone
returning message_id
