-- A process ends and hands over all its shards; the others see it at their next look. $1 relay, $2 process.
with released as (
    update outbox.cursor set owner = null, crashes = 0, recorded_at = clock_timestamp() where relay = $1 and owner = $2
),
gone as (
    delete from outbox.process where id = $2
)
update outbox.relay set changes = changes + 1, left_at = clock_timestamp() where name = $1
