-- Forgets a kind, unless a running process handles it: removes its registration and the messages of it that are held,
-- writes down that they count as handled, and who decided it. An id that is held since before for a message from another
-- source is left to that one. After `lock_kind`, in its transaction. `heads` are the holds
-- whose first message was one of them.
-- $1 consumer, $2 kind, $3 the holds that are locked, $4 who, $5 why, $6 seconds since the last registration after which
-- no process is taken to handle it
with handled as materialized (
    select from inbox.consumer_kind
    where consumer = $1::text and kind = $2::text
        and last_seen_at between clock_timestamp() - $6::double precision * interval '1 second'
            and clock_timestamp() + interval '1 minute'
), forgotten as (
    delete from inbox.consumer_kind
    where consumer = $1::text and kind = $2::text and not exists (select from handled)
    returning 1
), given_up as materialized (
    select arrival, hold, received_at, message_id, source
    from inbox.held_message
    where consumer = $1::text and kind = $2::text and hold = any ($3::bigint[]) and not exists (select from handled)
), heads as materialized (
    select locked.hold
    from pg_catalog.unnest($3::bigint[]) as locked (hold)
    where not exists (select from handled)
        and (
            select first.kind
            from inbox.held_message as first
            where first.consumer = $1::text and first.hold = locked.hold
            order by first.arrival
            limit 1
        ) = $2::text
), removed as (
    delete from inbox.held_message using given_up
    where held_message.consumer = $1::text and held_message.arrival = given_up.arrival
), admitted as (
    insert into inbox.message (message_id, received_at, source_hash, slot, consumer)
    select message_id, received_at, inbox.source_hash(source), inbox.slot(message_id), $1::text
    from given_up
    where message_id is not null
        and not exists (
            select from inbox.held_message as earlier
            where earlier.consumer = $1::text and earlier.message_id = given_up.message_id
                and earlier.arrival < given_up.arrival
        )
    order by message_id
    on conflict do nothing
), written_down as (
    insert into inbox.audit (who, action, consumer, kind, reason)
    select $4::text, 'forget_kind', $1::text, $2::text, $5::text
    where exists (select from forgotten) or exists (select from given_up)
), each_written_down as (
    insert into inbox.audit (who, action, consumer, hold, message_id, kind, reason)
    select $4::text, 'forget_kind', $1::text, hold, message_id, $2::text, $5::text
    from given_up
    order by arrival
)
select
    exists (select from handled) as handled,
    exists (select from forgotten) as registered,
    (select count(*) from given_up) as messages,
    array(select hold from heads) as heads
