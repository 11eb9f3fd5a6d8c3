-- The held keys whose next attempt is due, by the database's clock, but for those that wait for a destination. $1 relay,
-- $2 shards, $3 the shards wanted, $4 at most so many.
select position, slot, attempts
from outbox.held_key
where relay = $1 and state = 'retrying' and destination is null and next_attempt_at <= statement_timestamp()
    and (slot % $2) = any ($3)
order by next_attempt_at
limit $4
