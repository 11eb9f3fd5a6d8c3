-- Admits a message to a consumer: a row for the first copy, none for a repeat, and none for a message made before the
-- floor. In the transaction that carries the effect.
--
-- `day` is never read. A statement locks the tables that it names before it takes its snapshot, so at read committed no
-- pruning comes between the floor that is seen here and the row. Above, the snapshot is older: the floor is locked, which
-- fails with 40001 if it has risen since.
-- $1 consumer, $2 message id, $3 when the message was made (null: undated), $4 source (null: unknown). {day}: the
-- partition of the message's day
with day as (
    select from {day} where false
), locked_floor as materialized (
    select floor from inbox.retention
    where pg_catalog.current_setting('transaction_isolation') in ('repeatable read', 'serializable')
    for share
), judged as materialized (
    select coalesce($3::timestamptz < coalesce(
        (select floor from locked_floor), (select floor from inbox.retention)), false) as too_old
), admitted as (
    insert into inbox.message (message_id, source_hash, slot, consumer)
    select $2::uuid, inbox.source_hash($4::text), inbox.slot($2::uuid), $1::text
    from judged
    where not too_old
    on conflict do nothing
    returning 1
)
select exists (select from admitted) as first, too_old from judged
