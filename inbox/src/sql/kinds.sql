-- The kinds that processes of a consumer have registered, and those of which messages are held: when a process registered
-- each last, how long ago that is by this clock, and how many messages of it are held.
-- $1 consumer (null: all)
select
    coalesce(registered.consumer, held.consumer) as consumer, coalesce(registered.kind, held.kind) as kind,
    registered.last_seen_at,
    extract(epoch from clock_timestamp() - registered.last_seen_at)::double precision as unseen_seconds,
    coalesce(held.messages, 0) as messages
from inbox.consumer_kind as registered
full join (
    select consumer, kind, count(*) as messages
    from inbox.held_message
    where kind is not null
    group by consumer, kind
) as held on held.consumer = registered.consumer and held.kind = registered.kind
where $1::text is null or coalesce(registered.consumer, held.consumer) = $1::text
order by 1, 2
