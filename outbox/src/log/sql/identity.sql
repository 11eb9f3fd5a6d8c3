-- Which server process answers, when it began and what time it is there (microseconds), and which life of which server
-- this is: another one after a failover. By the server's start, too: where processes are numbered anew, as in a container,
-- the same number comes back. A role that was set in the session may not see when the process began.
select pg_catalog.format('%s %s', pg_backend_pid(), extract(epoch from pg_postmaster_start_time())) as backend,
    (extract(epoch from a.backend_start) * 1000000::numeric)::bigint as began,
    (extract(epoch from clock_timestamp()) * 1000000::numeric)::bigint as clock,
    pg_catalog.format('%s/%s/%s', pg_catalog.left(pg_catalog.pg_walfile_name(pg_current_wal_insert_lsn()), 8), c.system_identifier,
        extract(epoch from pg_postmaster_start_time())) as life
from pg_catalog.pg_stat_get_activity(pg_backend_pid()) a, pg_control_system() c
