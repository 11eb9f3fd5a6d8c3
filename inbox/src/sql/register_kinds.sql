-- Registers the kinds that a process of a consumer handles, and that it still does, to the minute. `is_new`: a process may
-- still believe that one of them is unknown. Times of a clock that was ahead are written anew.
-- $1 consumer, $2 kinds
with registered as (
    insert into inbox.consumer_kind (consumer, kind)
    select $1::text, handled.kind
    from pg_catalog.unnest($2::text[]) as handled (kind)
    where not exists (
        -- No row is locked that need not be written: another process would wait for it.
        select from inbox.consumer_kind as known
        where known.consumer = $1::text and known.kind = handled.kind
            and known.last_seen_at between clock_timestamp() - interval '1 minute' and clock_timestamp() + interval '1 minute'
    )
    order by handled.kind
    on conflict (consumer, kind) do update
    set last_seen_at = clock_timestamp(), registered_at = least(consumer_kind.registered_at, clock_timestamp())
)
select exists (
    select from pg_catalog.unnest($2::text[]) as handled (kind)
    where not exists (
        select from inbox.consumer_kind as known
        where known.consumer = $1::text and known.kind = handled.kind
            and known.registered_at < clock_timestamp() - interval '1 minute'
    )
) as is_new
