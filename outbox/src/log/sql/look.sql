-- What a poll looks at, in one row and without a write: the snapshot, and, read after it, the last position drawn (so
-- that no visible row lies above it), the end of the log's WAL (so that every visible commit lies below it), how much
-- of it is flushed, the server process that answers (as in identity.sql) and what time it is there (microseconds), and how
-- often the sharing of relay $1 has changed. `read_committed`: so is a statement that does not say what it is.
select pg_current_snapshot()::text as snapshot,
    case when s.is_called then s.last_value else 0 end as last_position,
    pg_catalog.pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint as inserted,
    pg_catalog.pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint as flushed,
    pg_catalog.format('%s %s', pg_backend_pid(), extract(epoch from pg_postmaster_start_time())) as backend,
    (extract(epoch from clock_timestamp()) * 1000000::numeric)::bigint as clock,
    pg_catalog.current_setting('default_transaction_isolation') = 'read committed' as read_committed,
    coalesce((select r.changes from outbox.relay r where r.name = $1), 0) as changes
from outbox.message_position_seq s
