-- How much of the WAL is flushed.
select pg_catalog.pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint
