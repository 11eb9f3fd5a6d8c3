-- Gives up the first message of a parked key, has the next one tried, and writes down who decided it. Not of a key that is
-- being tried: its owner may be publishing that message now. A retired relay tries nothing: of its keys any is given up,
-- and one without messages is let go here, since no process will. While the shard's cursor has not passed the message, its
-- position stays as settled (relay/sql/settle.sql). $1 relay, $2 position that names the hold, $3 who, $4 why. Answers the
-- message's id.
with hold as (
    select h.position, r.shards, r.state = 'retired' as retired
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
),
settled as (
    -- Without its row in the log the message has been passed: the log keeps what a cursor has not.
    insert into outbox.settled_message (relay, position, held, slot, tx)
    select $1, m.position, hold.position, m.slot, m.tx
    from gone
    cross join hold
    join outbox.message m on m.position = gone.position and ((m.position >> 20) & 15) = ((gone.position >> 20) & 15)
    join outbox.cursor c on c.relay = $1 and c.shard = m.slot % hold.shards
    cross join lateral (select max(e.era) as era from outbox.cluster e where e.first_position <= m.position) its
    where not hold.retired
        and case
            when its.era <> c.era then its.era > c.era
            else not pg_visible_in_snapshot(m.tx, c.seen)
                and (c.until is null or m.position > c.after or not pg_visible_in_snapshot(m.tx, c.until))
        end
    on conflict (relay, position) do nothing
)
insert into outbox.audit (who, action, relay, position, message_id, reason)
select $3, 'skip', $1, gone.position, gone.id, $4 from gone
returning message_id
