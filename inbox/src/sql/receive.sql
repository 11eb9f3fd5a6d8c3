-- The first statement of a delivery's transaction: whether the message, or its key, is held, or the message is in
-- quarantine; if not, admits it. One snapshot answers all, so a message cannot pass one of its key that is held.
-- $1 consumer, $2 message id, $3 when the message was made (null: undated), $4 key (null: none),
-- $5 microseconds since it was received
with held_key as materialized (
    select 1 from inbox.held_key where consumer = $1::text and key = $4::text
), held_message as materialized (
    select 1 from inbox.held_message where consumer = $1::text and message_id = $2::uuid
), quarantined as materialized (
    select 1 from inbox.quarantine where consumer = $1::text and message_id = $2::uuid
), admitted as (
    insert into inbox.message (message_id, received_at, slot, consumer)
    select $2::uuid, clock_timestamp() - $5::bigint * interval '1 microsecond', inbox.slot($2::uuid), $1::text
    where not exists (select from held_key) and not exists (select from held_message)
        and not exists (select from quarantined)
        and ($3::timestamptz is null or $3::timestamptz >= (select floor from inbox.retention))
    on conflict do nothing
    returning 1
)
select
    exists (select from admitted) as first,
    exists (select from held_message) as message_held,
    exists (select from held_key) as key_held,
    exists (select from quarantined) as quarantined,
    coalesce($3::timestamptz < (select floor from inbox.retention), false) as too_old,
    pg_current_xact_id_if_assigned()::text as transaction,
    pg_backend_pid() as backend
