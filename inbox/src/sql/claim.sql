-- Takes held keys that are due and counts the try of each one's first message before it begins. Others do not take them
-- until a try has had its time, or until this process is found dead.
-- A key whose last try did not end was in hand when its process died, beside others. That try is not counted; its message
-- goes to the quarantine and is left to `claim_alone`, as is each message that is there already. A try by this process,
-- which lives, that did not end is made again and counted once.
-- Returns a row for each key that is taken, or one row without a key; each says whether more may be due, whether a message
-- was sent to the quarantine, and whether one was there.
-- $1 consumer, $2 how many, $3 milliseconds a try may last, $4 the kinds that this process handles, $5 process
with due as materialized (
    select
        held_key.hold, first.message_id,
        coalesce(held_key.tried_by <> $5::uuid, false) and first.message_id is not null as unfinished,
        coalesce(held_key.tried_by = $5::uuid, false) as again
    from inbox.held_key
    left join lateral (
        select message_id, kind from inbox.held_message
        where held_message.consumer = held_key.consumer and held_message.hold = held_key.hold
        order by arrival
        limit 1
    ) as first on true
    where held_key.consumer = $1::text and held_key.state = 'retrying'
        and held_key.next_attempt_at <= statement_timestamp()
        and coalesce(first.kind = any ($4::text[]), true)
        and not exists (
            select from inbox.quarantine
            where quarantine.consumer = $1::text and quarantine.message_id = first.message_id
        )
    order by held_key.next_attempt_at
    limit $2::bigint
    for no key update of held_key skip locked
), updated as (
    update inbox.held_key
    set attempts = case
            when due.unfinished then greatest(held_key.attempts - 1, 0)
            when due.again then greatest(held_key.attempts, 1)
            else held_key.attempts + 1
        end,
        next_attempt_at = case
            when due.unfinished then held_key.next_attempt_at
            else clock_timestamp() + $3::bigint::float8 * interval '1 millisecond'
        end,
        tried_by = case when due.unfinished then null else $5::uuid end
    from due
    where held_key.consumer = $1::text and held_key.hold = due.hold
    returning held_key.hold, held_key.attempts, held_key.last_error, due.unfinished
), quarantined as (
    insert into inbox.quarantine (consumer, message_id)
    select $1::text, message_id from due where unfinished order by message_id
    on conflict do nothing
), claimed as (
    select hold, attempts, last_error from updated where not unfinished
)
select
    (select count(*) from due) >= $2::bigint as more,
    exists (select from due where unfinished) as unfinished,
    exists (select from inbox.quarantine where consumer = $1::text) as suspects,
    claimed.hold, claimed.attempts, claimed.last_error, message.arrival, message.received_at, message.message_id,
    message.correlation, message.causation, message.occurred_at, message.source, message.topic, message.kind,
    message.key, message.headers::text as headers, message.payload, message.late
from (values (1)) as answer
left join claimed on true
left join lateral (
    select arrival, received_at, message_id, correlation, causation, occurred_at, source, topic, kind, key, headers,
        payload, late
    from inbox.held_message
    where held_message.consumer = $1::text and held_message.hold = claimed.hold
    order by arrival
    limit 1
) as message on true
