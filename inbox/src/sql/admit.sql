-- Admits a message to a consumer: a row for the first copy, none for a repeat, and none for a message made before the
-- floor. In the transaction that carries the effect.
-- $1 consumer, $2 message id, $3 when the message was made (null: undated)
with admitted as (
    insert into inbox.message (message_id, slot, consumer)
    select $2::uuid, inbox.slot($2::uuid), $1::text
    where $3::timestamptz is null or $3::timestamptz >= (select floor from inbox.retention)
    on conflict do nothing
    returning 1
)
select
    exists (select from admitted) as first,
    coalesce($3::timestamptz < (select floor from inbox.retention), false) as too_old
