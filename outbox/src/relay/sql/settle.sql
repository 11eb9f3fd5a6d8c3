-- Held messages are done with: published, or given up because of an error, which is written down in the relay's name. They
-- go, and the next ones of their keys are tried at once and afresh. A key of which nothing is left stays as it is: it is about
-- to be let go. $1 relay, then one array a column: $2 position that names the hold, $3 position of the message, $4 shard,
-- $5 epoch, $6 error (null: it is published), $7 attempts in the key's row (null: any), without which it is not given up: a
-- person has had it tried afresh. While the cursors of their shards have not passed them, their positions stay as
-- settled, and are the answer; no row of a message: the cursor has passed it, or the shard is another's.
with guard as materialized (
    select d.held, d.position, d.error, d.attempts, c.era, c.seen, c.until, c.after
    from unnest($2::bigint[], $3::bigint[], $4::smallint[], $5::bigint[], $6::text[], $7::integer[])
        as d (held, position, shard, epoch, error, attempts)
    join outbox.cursor c on c.relay = $1 and c.shard = d.shard and c.epoch = d.epoch
),
done as materialized (
    -- Locked first: a copy to a hold waits for this (lock_holds.sql), and then sees what is settled. It carries what is done:
    -- two lists without statistics would be compared row by row.
    select g.*
    from guard g
    join outbox.held_key h on h.relay = $1 and h.position = g.held and h.attempts = coalesce(g.attempts, h.attempts)
    order by h.position
    for no key update of h
),
gone as (
    delete from outbox.held_message m
    using done
    where m.relay = $1 and m.position = done.position
    returning m.position, m.id, done.held, done.error, done.era, done.seen, done.until, done.after
),
tried as (
    update outbox.held_key h
    set attempts = 0, next_attempt_at = clock_timestamp(), last_error = coalesce(last.error, h.last_error),
        destination = null
    from (
        select done.held, max(done.position) as position, max(done.error) as error from done group by done.held
    ) last
    where h.relay = $1 and h.position = last.held and h.state = 'retrying'
        and exists (
            select from outbox.held_message m where m.relay = $1 and m.held = last.held and m.position > last.position
        )
),
written as (
    insert into outbox.audit (who, action, relay, position, message_id, reason)
    select 'relay ' || $1, 'skip', $1, gone.position, gone.id, gone.error from gone where gone.error is not null
)
insert into outbox.settled_message as s (relay, position, held, slot, tx)
select $1, m.position, gone.held, m.slot, m.tx
from gone
-- Without its row in the log it has been passed: the log keeps what a cursor has not. Looked up one by one: the log is long.
cross join lateral (
    select l.position, l.slot, l.tx
    from outbox.message l
    where l.position = gone.position and ((l.position >> 20) & 15) = ((gone.position >> 20) & 15)
    limit 1
) m
cross join lateral (select max(e.era) as era from outbox.cluster e where e.first_position <= m.position) its
where case
        when its.era <> gone.era then its.era > gone.era
        else not pg_visible_in_snapshot(m.tx, gone.seen)
            and (gone.until is null or m.position > gone.after or not pg_visible_in_snapshot(m.tx, gone.until))
    end
on conflict (relay, position) do nothing
returning s.position, s.slot, s.tx::text
