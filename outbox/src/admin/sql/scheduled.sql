-- How many scheduled messages wait to be due, as far as they can be counted quickly, and when the next one is.
select (select count(*) from (select from outbox.scheduled_message limit 10001) as first) as waiting,
    (select s.due_at from outbox.scheduled_message s where s.due_at < '10000-01-01 00:00:00+00' order by s.due_at, s.number limit 1) as next_due
