-- An attempt failed. $1 relay, $2 position that names the hold, $3 shard, $4 epoch, $5 state, $6 seconds until the next
-- attempt (null: parked), $7 error (null: the one it has), $8 attempts to take back because the fault was not the message's.
update outbox.held_key h
set state = $5, next_attempt_at = clock_timestamp() + make_interval(secs => $6), last_error = coalesce($7, h.last_error),
    attempts = greatest(h.attempts - $8, 0)
from outbox.cursor c
where h.relay = $1 and h.position = $2 and c.relay = $1 and c.shard = $3 and c.epoch = $4
