-- As handler_settings.sql, for a transaction of ours alone: names are found in `pg_catalog`, so that no object which others put
-- into a schema of the path is called; and a lock is not waited for without end, if nothing else bounds that. $1
-- milliseconds, as a literal.
select pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true),
    pg_catalog.set_config('jit', 'off', true),
    pg_catalog.set_config('idle_in_transaction_session_timeout', $1, true),
    case pg_catalog.current_setting('lock_timeout') when '0' then
        pg_catalog.set_config('lock_timeout', '60s', true)
    end,
    case pg_catalog.current_setting('synchronous_commit') when 'off' then
        pg_catalog.set_config('synchronous_commit', 'on', true)
    end
