-- Whether any of these messages, which are admitted already, came from another source. One that is not known is no other.
-- $1 consumer, $2 message ids, $3 their sources
select exists (
    select
    from rows from (pg_catalog.unnest($2::uuid[]), pg_catalog.unnest($3::text[])) as batch (id, source)
    join inbox.message as known
        on known.message_id = batch.id and known.consumer = $1::text and known.slot = inbox.slot(batch.id)
    where known.source_hash <> inbox.source_hash(batch.source)
) as another
