-- A held message is published: it goes, and the next of its key is tried at once and afresh. $1 relay, $2 position that
-- names the hold, $3 position of the message, $4 shard, $5 epoch.
with guard as (
    select from outbox.cursor where relay = $1 and shard = $4 and epoch = $5
),
gone as (
    delete from outbox.held_message m using guard where m.relay = $1 and m.position = $3
)
update outbox.held_key h set attempts = 0, next_attempt_at = clock_timestamp() from guard
where h.relay = $1 and h.position = $2 and h.state = 'retrying'
