-- Counts an attempt before it is made, under the shard's epoch, and answers the first message held. No row: the lease is
-- lost, or the key is not to be tried. A row without a message: nothing is held any more. $1 relay, $2 position that
-- names the hold, $3 shard, $4 epoch, $5 seconds after which it is due again if nobody says what came of it.
with attempt as (
    update outbox.held_key h
    set attempts = h.attempts + 1, next_attempt_at = clock_timestamp() + make_interval(secs => $5)
    from outbox.cursor c
    where h.relay = $1 and h.position = $2 and h.state = 'retrying' and c.relay = $1 and c.shard = $3 and c.epoch = $4
    returning h.attempts
)
select a.attempts, m.position, m.id, m.correlation, m.causation, m.occurred_at, m.source, m.topic, m.kind, m.key,
    m.headers::text as headers, m.payload
from attempt a
left join lateral (
    select * from outbox.held_message held where held.relay = $1 and held.held = $2 order by held.position limit 1
) m on true
