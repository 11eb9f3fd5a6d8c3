-- What is visible now.
select pg_current_snapshot()::text
