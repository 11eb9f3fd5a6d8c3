-- A held message is done with: published, or given up because of an error, which is written down in the relay's name. It
-- goes, and the next of its key is tried at once and afresh. $1 relay, $2 position that names the hold, $3 position of the
-- message, $4 shard, $5 epoch, $6 error (null: it is published). While the shard's cursor has not passed it, its position
-- stays as settled, and is the answer; no row: the cursor has passed it, or the shard is another's.
with guard as materialized (
    select c.era, c.seen, c.until, c.after from outbox.cursor c where c.relay = $1 and c.shard = $4 and c.epoch = $5
),
hold as materialized (
    -- Locked first: a copy to the hold waits for this (lock_holds.sql), and then sees what is settled.
    select h.position
    from outbox.held_key h
    cross join guard
    where h.relay = $1 and h.position = $2
    for no key update of h
),
gone as (
    delete from outbox.held_message m using hold where m.relay = $1 and m.position = $3 returning m.position, m.id
),
tried as (
    update outbox.held_key h
    set attempts = 0, next_attempt_at = clock_timestamp(), last_error = coalesce($6::text, h.last_error)
    from hold
    where h.relay = $1 and h.position = hold.position and h.state = 'retrying'
),
written as (
    insert into outbox.audit (who, action, relay, position, message_id, reason)
    select 'relay ' || $1, 'skip', $1, gone.position, gone.id, $6::text from gone where $6::text is not null
)
insert into outbox.settled_message as s (relay, position, held, slot, tx)
select $1, m.position, $2, m.slot, m.tx
from gone
cross join guard
-- Without its row in the log it has been passed: the log keeps what a cursor has not.
join outbox.message m on m.position = gone.position
cross join lateral (select max(e.era) as era from outbox.cluster e where e.first_position <= m.position) its
where m.position = $3 and ((m.position >> 20) & 15) = (($3 >> 20) & 15)
    and case
        when its.era <> guard.era then its.era > guard.era
        else not pg_visible_in_snapshot(m.tx, guard.seen)
            and (guard.until is null or m.position > guard.after or not pg_visible_in_snapshot(m.tx, guard.until))
    end
on conflict (relay, position) do nothing
returning s.position, s.slot, s.tx::text
