-- Lets one process at a time migrate the schema numbered $1 in this database, until the transaction ends.
-- Two numbers: the space of one number belongs to the keys that `lock_key` locks and to the user.
select pg_catalog.pg_advisory_xact_lock(1869968482, $1)
