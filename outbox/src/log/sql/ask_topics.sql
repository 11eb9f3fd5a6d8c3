-- Registers topics that a process of a consumer group asks for, and answers all that processes of the group have ever asked
-- for; `is_new`: it is registered now. Processes at work see a new one at their next look. $1 relay, $2 patterns.
with new as (
    insert into outbox.group_topic (relay, pattern)
    select $1::text, asked.pattern
    from pg_catalog.unnest($2::text[]) as asked (pattern)
    where not exists (
        select from outbox.group_topic known where known.relay = $1::text and known.pattern = asked.pattern
    )
    order by asked.pattern
    on conflict (relay, pattern) do nothing
    returning pattern
),
told as (
    update outbox.relay r set changes = r.changes + 1 where r.name = $1::text and exists (select from new)
)
select new.pattern, true as is_new from new
union all
select known.pattern, false from outbox.group_topic known where known.relay = $1::text
