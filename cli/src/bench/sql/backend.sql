-- The server process that answers, where the WAL ends, and whether the server is on this machine.
select pg_backend_pid(), pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint,
    inet_server_addr() is null or inet_server_addr() <<= inet '127.0.0.0/8' or inet_server_addr() = inet '::1',
    current_setting('server_version')
