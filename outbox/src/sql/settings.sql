-- What a transaction of ours rests on, whatever the role or the database has set. Names are found in `pg_catalog` alone, so
-- that no object which others put into a schema of the path is called. A commit waits for the disk. Nothing is compiled, which takes seconds
-- where the planner expects much and finds little.
-- How long the server waits for the next statement before it ends the connection: a client that stops in the middle, or
-- cannot be reached, would otherwise keep its locks for as long as it does.
select pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true),
    pg_catalog.set_config('jit', 'off', true),
    pg_catalog.set_config('idle_in_transaction_session_timeout', '1s', true),
    case pg_catalog.current_setting('synchronous_commit') when 'off' then
        pg_catalog.set_config('synchronous_commit', 'on', true)
    end
