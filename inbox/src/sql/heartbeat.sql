-- Renews the heartbeat of a process, and removes the processes of its consumer whose heartbeat has expired. Messages
-- these had declared go to the quarantine, unless they are handled or held. Held keys these were trying are due at once.
-- A heartbeat that expires in more than a minute was written by a clock that was ahead, and counts as expired.
-- A process whose own heartbeat had expired judges no other: after an outage all have expired, and the others have until
-- its next heartbeat.
-- A message that was handled leaves the quarantine: its process was taken for dead, and lived.
-- Returns how many processes died, how many messages they had declared that are now quarantined, for how many milliseconds
-- a death is still recent, and what time it is.
-- $1 process, $2 consumer, $3 milliseconds until its heartbeat expires, $4 whether it declares now what it is about to
-- try, $5 milliseconds for which a death is recent, $6 milliseconds after which a message that is not held leaves the
-- quarantine
with previous as materialized (
    select expires_at from inbox.process where id = $1::uuid
), expired as materialized (
    select id from inbox.process
    where consumer = $2::text and id <> $1::uuid
        and expires_at not between clock_timestamp() and clock_timestamp() + interval '1 minute'
        and not exists (
            select from previous
            where expires_at not between clock_timestamp() and clock_timestamp() + interval '1 minute'
        )
    for update skip locked
), mine as (
    insert into inbox.process (id, consumer, expires_at)
    values ($1::uuid, $2::text, clock_timestamp() + $3::bigint::float8 * interval '1 millisecond')
    on conflict (id) do update
    set expires_at = excluded.expires_at, in_hand = case when $4::boolean then process.in_hand else '{}' end
), dead as (
    delete from inbox.process using expired
    where process.id = expired.id
    returning process.id, process.in_hand
), quarantined as (
    insert into inbox.quarantine (consumer, message_id)
    select distinct $2::text, declared.id
    from dead cross join lateral pg_catalog.unnest(dead.in_hand) as declared (id)
    where not exists (
            select from inbox.message
            where message.message_id = declared.id and message.consumer = $2::text
                and message.slot = inbox.slot(declared.id)
        ) and not exists (
            select from inbox.held_message
            where held_message.consumer = $2::text and held_message.message_id = declared.id
        )
    order by declared.id
    on conflict do nothing
    returning 1
), under_way as materialized (
    select held_key.hold from inbox.held_key
    join dead on dead.id = held_key.tried_by
    where held_key.consumer = $2::text and held_key.state = 'retrying'
    for no key update of held_key skip locked
), due as (
    update inbox.held_key set next_attempt_at = clock_timestamp()
    from under_way
    where held_key.consumer = $2::text and held_key.hold = under_way.hold
), handled as materialized (
    -- One row each, by the index: planned without statistics, it would read every message.
    select quarantine.message_id from inbox.quarantine
    cross join lateral (
        select from inbox.message
        where message.message_id = quarantine.message_id and message.consumer = $2::text
            and message.slot = inbox.slot(quarantine.message_id)
        limit 1
    ) as known
    where quarantine.consumer = $2::text
), forgotten as (
    delete from inbox.quarantine
    where quarantine.consumer = $2::text
        and (
            quarantine.message_id in (select message_id from handled)
            or quarantine.quarantined_at not between
                    clock_timestamp() - $6::bigint::float8 * interval '1 millisecond'
                    and clock_timestamp() + interval '1 minute'
                and not exists (
                    select from inbox.held_message
                    where held_message.consumer = $2::text and held_message.message_id = quarantine.message_id
                )
        )
), recorded as (
    update inbox.consumer set died_at = clock_timestamp() where name = $2::text and exists (select from dead)
)
select
    (select count(*) from dead) as dead,
    (select count(*) from quarantined) as quarantined,
    case when exists (select from dead) then $5::bigint else coalesce((
        select greatest(0, $5::bigint - (extract(epoch from clock_timestamp() - died_at) * 1000::numeric)::bigint)
        from inbox.consumer
        where name = $2::text and died_at <= clock_timestamp()
    ), 0) end as recent,
    clock_timestamp() as now
