-- The last attempt failed at a message whose topic's policy is to skip: it goes, which is written down in the relay's name,
-- and the next of its key is tried at once and afresh. $1 relay, $2 position that names the hold, $3 position of the
-- message, $4 shard, $5 epoch, $6 error.
with guard as (
    select from outbox.cursor where relay = $1 and shard = $4 and epoch = $5
),
gone as (
    delete from outbox.held_message m using guard where m.relay = $1 and m.position = $3 returning m.id
),
tried as (
    update outbox.held_key h set attempts = 0, next_attempt_at = clock_timestamp(), last_error = $6 from guard
    where h.relay = $1 and h.position = $2 and h.state = 'retrying'
)
insert into outbox.audit (who, action, relay, position, message_id, reason)
select 'relay ' || $1, 'skip', $1, $3, gone.id, $6 from gone
