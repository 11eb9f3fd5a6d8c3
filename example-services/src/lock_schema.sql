-- Lets one process at a time create a service's tables; `create ... if not exists` alone fails when two do it at once.
select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('example-services', 0))
