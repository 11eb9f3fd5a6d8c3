-- Gives up a message, the first one of a parked key, has the next one tried, and writes down who decided it. Not one that is
-- not the first: a person has looked at another then. Not of a key that is being tried: its owner may be publishing that message
-- now. A retired relay tries nothing, once no process of it is alive: of its keys any is given up, and one without messages, named by its own position, is let
-- go here, since no process will. While the shard's cursor has not passed the message, its position stays as settled
-- (relay/sql/settle.sql). $1 relay, $2 position of the message, $3 who, $4 why. A row: done.
with named as (
    select m.held as position from outbox.held_message m where m.relay = $1 and m.position = $2
    union
    select $2::bigint
    where not exists (select from outbox.held_message m where m.relay = $1 and m.held = $2)
),
hold as (
    select h.position, h.slot, r.shards, r.state = 'retired' as retired
    from named
    join outbox.held_key h on h.relay = $1 and h.position = named.position
    join outbox.relay r on r.name = h.relay
    where (
            h.state = 'parked'
            or r.state = 'retired' and not exists (
                select from outbox.process p
                where p.relay = r.name
                    and p.expires_at between clock_timestamp() and clock_timestamp() + p.lasts + interval '1 minute'
            )
        )
        and not exists (
            select from outbox.held_message m where m.relay = $1 and m.held = h.position and m.position < $2
        )
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
    using hold
    where m.relay = $1 and m.held = hold.position and m.position = $2
    returning m.id, m.position, m.tx
),
tried as (
    update outbox.held_key h
    set state = 'retrying', attempts = 0, next_attempt_at = clock_timestamp()
    from hold
    where h.relay = $1 and h.position = hold.position and not hold.retired and exists (select from gone)
),
let_go as (
    delete from outbox.held_key h
    using hold
    where h.relay = $1 and h.position = hold.position and hold.retired and (select count(*) from waiting) < 2
),
settled as (
    insert into outbox.settled_message (relay, position, held, slot, tx)
    select $1, gone.position, hold.position, hold.slot, gone.tx
    from gone
    cross join hold
    join outbox.cursor c on c.relay = $1 and c.shard = hold.slot % hold.shards
    cross join lateral (select max(e.era) as era from outbox.cluster e where e.first_position <= gone.position) its
    where not hold.retired and gone.tx is not null
        and case
            when its.era <> c.era then its.era > c.era
            else not pg_visible_in_snapshot(gone.tx, c.seen)
                and (c.until is null or gone.position > c.after or not pg_visible_in_snapshot(gone.tx, c.until))
        end
    on conflict (relay, position) do nothing
)
insert into outbox.audit (who, action, relay, position, message_id, reason)
select $3, 'skip', $1, gone.position, gone.id, $4 from gone
returning position
