-- The first statement of a delivery's transaction: whether the message, or its key, is held, or the message is in
-- quarantine; if not, admits it. One snapshot answers all, so a message cannot pass one of its key that is held. `day` and
-- `locked_floor` as in admit.sql.
-- $1 consumer, $2 message id, $3 when the message was made (null: undated), $4 key (null: none),
-- $5 microseconds since it was received, $6 source (null: unknown). {day}: the partition of the message's day
with day as (
    select from {day} where false
), held_key as materialized (
    select 1 from inbox.held_key where consumer = $1::text and key = $4::text
), held_message as materialized (
    select coalesce(inbox.source_hash(source) = inbox.source_hash($6::text), true) as same
    from inbox.held_message where consumer = $1::text and message_id = $2::uuid
), quarantined as materialized (
    select 1 from inbox.quarantine where consumer = $1::text and message_id = $2::uuid
), locked_floor as materialized (
    select floor from inbox.retention
    where pg_catalog.current_setting('transaction_isolation') in ('repeatable read', 'serializable')
    for share
), judged as materialized (
    select coalesce($3::timestamptz < coalesce(
        (select floor from locked_floor), (select floor from inbox.retention)), false) as too_old
), admitted as (
    insert into inbox.message (message_id, received_at, source_hash, slot, consumer)
    select $2::uuid, clock_timestamp() - $5::bigint::float8 * interval '1 microsecond', inbox.source_hash($6::text),
        inbox.slot($2::uuid), $1::text
    from judged
    where not exists (select from held_key) and not exists (select from held_message)
        and not exists (select from quarantined) and not too_old
    on conflict do nothing
    returning 1
)
select
    exists (select from admitted) as first,
    exists (select from held_message where same) as message_held,
    exists (select from held_message where not same) as another_source,
    exists (select from held_key) as key_held,
    exists (select from quarantined) as quarantined,
    judged.too_old,
    pg_current_xact_id_if_assigned()::text as transaction,
    pg_backend_pid() as backend
from judged
