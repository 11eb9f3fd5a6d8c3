-- Held messages are done with: published, or given up because of an error, which is written down in the relay's name. They
-- go, and the next ones of their keys are tried at once and afresh. A key of which nothing is left goes, if it may, and stays
-- as it is otherwise. $1 relay, then one array a column: $2 position that names the hold, $3 position of the message (null:
-- none, only the key goes), $4 shard, $5 epoch, $6 error (null: it is published), $7 attempts in the key's row (null: any),
-- without which it is not given up: a person has had it tried afresh. $8 the holds that may go: no copies are on their way.
-- The epochs are looked at under locks: nothing is taken from a process that has loaded it meanwhile.
-- While the cursors of their shards have not passed them, the positions of messages stay as settled. Answers these, and the
-- holds that went, each with all its messages that are settled; one row without a message: none.
with asked as materialized (
    select d.held, d.position, d.shard, d.epoch, d.error, d.attempts, c.era, c.seen, c.until, c.after
    from unnest($2::bigint[], $3::bigint[], $4::smallint[], $5::bigint[], $6::text[], $7::integer[])
        as d (held, position, shard, epoch, error, attempts)
    join outbox.cursor c on c.relay = $1 and c.shard = d.shard and c.epoch = d.epoch
),
hold as materialized (
    -- Locked first: a copy to a hold waits for this (lock_holds.sql), and then sees what is settled. It carries what is asked:
    -- two lists without statistics would be compared row by row.
    select a.*, h.slot
    from asked a
    join outbox.held_key h on h.relay = $1 and h.position = a.held and h.attempts = coalesce(a.attempts, h.attempts)
    order by h.position
    for update of h
),
owned as materialized (
    -- The epoch under a lock that acquire.sql waits for, and a record does not: another process may have acquired the shard
    -- since, and read what this would change. Few: it is joined to no list.
    select c.shard
    from outbox.cursor c
    join (select distinct hold.shard, hold.epoch from hold) asked on asked.shard = c.shard and asked.epoch = c.epoch
    where c.relay = $1
    order by c.shard
    for key share of c
),
gone as (
    delete from outbox.held_message m
    using hold
    where m.relay = $1 and m.position = hold.position and hold.shard = any (array(select owned.shard from owned))
    returning m.position, m.id, m.tx, hold.held, hold.slot, hold.error, hold.era, hold.seen, hold.until, hold.after
),
last as materialized (
    -- Also an earlier message may be left, which has come meanwhile.
    select l.held, l.positions, l.error,
        exists (
            select from outbox.held_message m
            where m.relay = $1 and m.held = l.held and m.position <> all (l.positions)
        ) as more
    from (
        select hold.held, max(hold.error) as error,
            coalesce(array_agg(hold.position) filter (where hold.position is not null), '{}') as positions
        from hold
        where hold.shard = any (array(select owned.shard from owned))
        group by hold.held
    ) l
),
tried as (
    update outbox.held_key h
    set attempts = 0, next_attempt_at = clock_timestamp(), last_error = coalesce(last.error, h.last_error),
        destination = null
    from last
    where h.relay = $1 and h.position = last.held and h.state = 'retrying' and last.more and cardinality(last.positions) > 0
),
released as (
    -- Copies that this does not see make it fail, by their reference to the key: then it is asked again.
    delete from outbox.held_key h
    using last
    where h.relay = $1 and h.position = last.held and not last.more and last.held = any ($8::bigint[])
    returning h.position
),
written as (
    insert into outbox.audit (who, action, relay, position, message_id, reason)
    select 'relay ' || $1, 'skip', $1, gone.position, gone.id, gone.error from gone where gone.error is not null
),
settled as (
    insert into outbox.settled_message as s (relay, position, held, slot, tx)
    select $1, gone.position, gone.held, gone.slot, gone.tx
    from gone
    cross join lateral (select max(e.era) as era from outbox.cluster e where e.first_position <= gone.position) its
    where case
            when gone.tx is null then false
            when its.era <> gone.era then its.era > gone.era
            else not pg_visible_in_snapshot(gone.tx, gone.seen)
                and (
                    gone.until is null or gone.position > gone.after
                    or not pg_visible_in_snapshot(gone.tx, gone.until)
                )
        end
    on conflict (relay, position) do nothing
    returning s.position, s.slot, s.tx
)
select null::bigint as released, settled.position, settled.slot, settled.tx::text as tx
from settled
union all
select released.position, s.position, s.slot, s.tx::text
from released
left join outbox.settled_message s on s.relay = $1 and s.held = released.position
