-- A key of the backlog, and how many messages it has.
select key, count(*) from outbox.message group by key order by key limit 1
