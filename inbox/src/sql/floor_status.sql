-- The floor, the database's time, and what the floor follows: the longest horizon of any consumer in seconds (null: none
-- has run), and the newest day of which rows were removed (null: none). Since when a process has run (null: none runs).
select
    floor,
    clock_timestamp() as now,
    (select pg_catalog.max(extract(epoch from horizon))::bigint from inbox.consumer) as horizon,
    (select pg_catalog.max(day) from inbox.emptied_day) as emptied,
    (
        select pg_catalog.min(started_at) from inbox.process
        where expires_at between clock_timestamp() and clock_timestamp() + interval '1 minute'
    ) as running_since
from inbox.retention
