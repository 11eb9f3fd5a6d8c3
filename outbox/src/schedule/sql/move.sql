-- Moves messages that are due into the log, in the order of their times, if the upkeep is this process's: its row is
-- locked, so that two of them never move at once, and whoever was relieved moves nothing. One that somebody is giving up
-- is passed over; if he does not in the end, it comes with a later move. $1 holder, $2 due after this, $3 at most so many,
-- $4 none of these numbers, $5 only this number (null: any), $6 of none of these keys. How many, and the last one's time.
with mine as materialized (
    select u.holder from outbox.upkeep u where u.holder = $1 for update
),
due as materialized (
    select d.due_at, d.number
    from mine
    cross join lateral (
        select m.due_at, m.number
        from outbox.scheduled_message m
        where m.due_at > $2 and m.due_at <= statement_timestamp() and m.number <> all ($4)
            and ($5::bigint is null or m.number = $5)
            and (m.key is null or m.key <> all ($6))
        order by m.due_at, m.number
        limit $3
        for update skip locked
    ) d
),
gone as (
    delete from outbox.scheduled_message m
    using due d
    where m.due_at = d.due_at and m.number = d.number
    returning m.*
),
moved as (
    insert into outbox.message (id, correlation, causation, occurred_at, source, topic, kind, key, headers, payload)
    select g.id, g.correlation, g.causation, g.occurred_at, g.source, g.topic, g.kind, g.key, g.headers, g.payload
    from gone g
    order by g.due_at, g.number
)
select count(*) as moved, max(d.due_at) as last_due from due d
