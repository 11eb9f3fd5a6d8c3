-- As settings.sql, in a transaction whose next statement may be long: the server counts a statement that is still coming in
-- as silence.
select pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true),
    pg_catalog.set_config('jit', 'off', true),
    case pg_catalog.current_setting('synchronous_commit') when 'off' then
        pg_catalog.set_config('synchronous_commit', 'on', true)
    end
