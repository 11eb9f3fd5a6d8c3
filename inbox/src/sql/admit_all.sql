-- Admits several messages to a consumer at once, or none if one is too old, and returns the ids of the first
-- copies: a row for each, or one without an id. The ids come sorted, else two batches that cross would deadlock. `day` and
-- `locked_floor` as in admit.sql.
-- $1 consumer, $2 message ids, sorted and each once, $3 their sources, $4 when the oldest was made (null: none is dated).
-- {days}: the partitions of the messages' days
with day as (
    select from {days} where false
), locked_floor as materialized (
    select floor from inbox.retention
    where pg_catalog.current_setting('transaction_isolation') in ('repeatable read', 'serializable')
    for share
), judged as materialized (
    select coalesce($4::timestamptz < coalesce(
        (select floor from locked_floor), (select floor from inbox.retention)), false) as too_old
), admitted as (
    insert into inbox.message (message_id, source_hash, slot, consumer)
    select batch.id, inbox.source_hash(batch.source), inbox.slot(batch.id), $1::text
    from judged, rows from (pg_catalog.unnest($2::uuid[]), pg_catalog.unnest($3::text[]))
        with ordinality as batch (id, source, number)
    where not judged.too_old
    order by batch.number
    on conflict do nothing
    returning message_id
)
select judged.too_old, admitted.message_id
from judged left join admitted on true
