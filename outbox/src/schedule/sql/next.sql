-- In how many seconds the next scheduled message is due, of those due after $1 (a literal); null if there is none. One
-- entry of an index, however many wait. And whether the upkeep is at rest, if $2 (a literal) holds it, and the time.
select (
    select extract(epoch from m.due_at - clock_timestamp())::float8
    from outbox.scheduled_message m
    where m.due_at > $1::timestamptz and m.due_at < '10000-01-01 00:00:00+00'
    order by m.due_at
    limit 1
) as due_in,
    exists (select from outbox.upkeep u where u.holder = $2::uuid and u.rests is not null) as rests,
    clock_timestamp() as now
