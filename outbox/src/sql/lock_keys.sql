-- Locks keys until the transaction ends, in one order for everybody, so that two transactions cannot deadlock on them.
-- The same lock as outbox.enqueue(..., lock_key => true). $1 keys.
select pg_catalog.pg_advisory_xact_lock(locks.lock)
from (select distinct pg_catalog.hashtextextended(key collate "C", 0) as lock from pg_catalog.unnest($1::text[]) as key order by 1) as locks
