-- The first statement of a retry's transaction: locks the held key against other processes, which go on appending to
-- it, and admits its first message. No row: another process has claimed the key meanwhile. It waits for the lock:
-- skipping a key that another process only looks whether to release would leave this try counted and not made.
-- $1 consumer, $2 hold, $3 attempts, $4 arrival, $5 message id, $6 when the message was made (null: undated, or let in
-- late), $7 process
with locked as materialized (
    select hold from inbox.held_key
    where consumer = $1::text and hold = $2::bigint and attempts = $3::integer and state = 'retrying'
        and tried_by = $7::uuid
    for no key update
), waiting as materialized (
    select held_message.received_at from inbox.held_message
    join locked on locked.hold = held_message.hold
    where held_message.consumer = $1::text and held_message.arrival = $4::bigint
), admitted as (
    insert into inbox.message (message_id, received_at, attempts, slot, consumer)
    select $5::uuid, waiting.received_at, $3::integer, inbox.slot($5::uuid), $1::text
    from waiting
    where $6::timestamptz is null or $6::timestamptz >= (select floor from inbox.retention)
    on conflict do nothing
    returning 1
)
select
    exists (select from admitted) as first,
    coalesce($6::timestamptz < (select floor from inbox.retention), false) as too_old,
    pg_current_xact_id_if_assigned()::text as transaction,
    pg_backend_pid() as backend
from locked
