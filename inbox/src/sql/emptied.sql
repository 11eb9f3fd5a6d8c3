-- Writes down that rows of a day were removed from a partition, in the transaction that removes them.
-- $1 partition, $2 the newest such day
insert into inbox.emptied_day (slot, day)
values ($1::smallint, $2::date)
on conflict (slot) do update set day = greatest(emptied_day.day, excluded.day)
