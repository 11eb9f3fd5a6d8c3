-- Lets one process at a time create a service's tables; `create … if not exists` alone fails when two do it at once.
select pg_advisory_xact_lock(hashtextextended('example-services', 0))
