-- Held messages are published: they go, and the next ones of their keys are tried at once and afresh. A key of which nothing is
-- left stays as it is: it is about to be let go. $1 relay, then one array a column: $2 position that names the hold,
-- $3 position of the message, $4 shard, $5 epoch.
with guard as (
    select d.held, d.position
    from unnest($2::bigint[], $3::bigint[], $4::smallint[], $5::bigint[]) as d (held, position, shard, epoch)
    join outbox.cursor c on c.relay = $1 and c.shard = d.shard and c.epoch = d.epoch
),
gone as (
    delete from outbox.held_message m using guard where m.relay = $1 and m.position = guard.position
)
update outbox.held_key h set attempts = 0, next_attempt_at = clock_timestamp(), destination = null
from (select guard.held, max(guard.position) as position from guard group by guard.held) last
where h.relay = $1 and h.position = last.held and h.state = 'retrying'
    and exists (select from outbox.held_message m where m.relay = $1 and m.held = last.held and m.position > last.position)
