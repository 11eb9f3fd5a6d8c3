-- Ends a backend whose handler's statement goes on after its time, so that its locks are given up at once.
-- $1 backend
select pg_catalog.pg_terminate_backend($1::integer)
