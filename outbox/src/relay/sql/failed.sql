-- Attempts failed. $1 relay, then one array a column: $2 position that names the hold, $3 shard, $4 epoch, $5 state,
-- $6 seconds until the next attempt (null: parked), $7 error (null: the one it has), $8 attempts to take back because the fault
-- was not the message's, $9 reason (null: the one it has), $10 destination that it waits for (null: none), $11 attempts in its
-- row (null: any). If they are others, or it is not retried, a person has decided meanwhile: only the error is written.
with given as materialized (
    select f.*
    from unnest(
        $2::bigint[], $3::smallint[], $4::bigint[], $5::text[], $6::float8[], $7::text[], $8::integer[], $9::text[], $10::text[],
        $11::integer[]
    ) as f (position, shard, epoch, state, seconds, error, taken_back, reason, destination, attempts)
    join outbox.cursor c on c.relay = $1 and c.shard = f.shard and c.epoch = f.epoch
),
hold as materialized (
    -- In the order in which others lock them. It carries what is given: two lists without statistics would be compared row by
    -- row.
    select given.*, h.state = 'retrying' and h.attempts = coalesce(given.attempts, h.attempts) as unchanged
    from given
    join outbox.held_key h on h.relay = $1 and h.position = given.position
    order by h.position
    for no key update of h
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
)
update outbox.held_key h
set state = case when f.unchanged then f.state else h.state end,
    next_attempt_at = case
        when f.unchanged then clock_timestamp() + make_interval(secs => f.seconds)
        else h.next_attempt_at
    end,
    last_error = coalesce(f.error, h.last_error),
    attempts = case when f.unchanged then greatest(h.attempts - f.taken_back, 0) else h.attempts end,
    reason = case when f.unchanged then coalesce(f.reason, h.reason) else h.reason end,
    destination = case when f.unchanged then f.destination else h.destination end
from hold f
where h.relay = $1 and h.position = f.position and f.shard = any (array(select owned.shard from owned))
