-- Transactions committed in this database, and the end of the server's WAL in bytes. Statistics of other connections come
-- up to a second late.
select xact_commit::float8, pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float8
from pg_stat_database
where datname = current_database()
