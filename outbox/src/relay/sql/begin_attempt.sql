-- Counts an attempt before it is made, under the shard's epoch, and answers the first message held. One attempt too many,
-- because the last ones ended with their process, parks the key instead. No row: parked, or the lease is lost, or the key is
-- not to be tried. A row without a message: nothing is held any more. $1 relay, $2 position that names the hold, $3 shard,
-- $4 epoch, $5 seconds after which it is due again if nobody says what came of it, $6 attempts allowed, $7 attempts made, if
-- one more may have been counted that was not made (null: none was).
with attempt as (
    update outbox.held_key h
    set state = case when least(h.attempts, $7) >= $6 then 'parked' else h.state end,
        attempts = least(h.attempts, $7) + case when least(h.attempts, $7) >= $6 then 0 else 1 end,
        next_attempt_at = case when least(h.attempts, $7) >= $6 then null else clock_timestamp() + make_interval(secs => $5) end
    from outbox.cursor c
    where h.relay = $1 and h.position = $2 and h.state = 'retrying' and c.relay = $1 and c.shard = $3 and c.epoch = $4
    returning h.attempts, h.state
)
select a.attempts, m.position, m.id, m.correlation, m.causation, m.occurred_at, m.source, m.topic, m.kind, m.key,
    m.headers::text as headers, m.payload
from attempt a
left join lateral (
    select * from outbox.held_message held where held.relay = $1 and held.held = $2 order by held.position limit 1
) m on true
where a.state = 'retrying'
