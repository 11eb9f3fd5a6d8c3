-- The server process that answers, where the WAL ends, whether the server is on this machine, and what it is: one that does
-- not wait for the disk is faster than any that does.
select pg_backend_pid(), pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint,
    inet_server_addr() is null or inet_server_addr() <<= inet '127.0.0.0/8' or inet_server_addr() = inet '::1',
    current_setting('server_version')
        || case current_setting('fsync') when 'off' then ', fsync off' else '' end
        || case current_setting('synchronous_commit') when 'off' then ', synchronous_commit off' else '' end
