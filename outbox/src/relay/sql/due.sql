-- The held keys whose next attempt is due, by the database's clock. $1 relay, $2 shards, $3 the shards wanted.
select position, slot, attempts
from outbox.held_key
where relay = $1 and state = 'retrying' and next_attempt_at <= clock_timestamp() and (slot % $2) = any ($3)
order by next_attempt_at
limit 100
