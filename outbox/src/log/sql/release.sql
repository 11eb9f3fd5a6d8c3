-- Hands over some shards of a process; the others see it at their next look. $1 relay, $2 process, $3 shards.
with released as (
    update outbox.cursor set owner = null, crashes = 0, recorded_at = clock_timestamp() where relay = $1 and owner = $2 and shard = any ($3) returning shard
)
update outbox.relay r set changes = r.changes + 1 where r.name = $1 and exists (select from released)
