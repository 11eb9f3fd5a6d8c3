-- What a handler's transaction rests on, whatever the role or the database has set: its commit waits for the disk, since the
-- broker forgets the message afterwards. How names are found is the handler's own.
-- How long the server waits for the next statement before it ends the connection: a client that stops in the middle, or
-- cannot be reached, would otherwise keep its locks for as long as it does. $1 milliseconds, as a literal.
select pg_catalog.set_config('idle_in_transaction_session_timeout', $1, true),
    case pg_catalog.current_setting('synchronous_commit') when 'off' then
        pg_catalog.set_config('synchronous_commit', 'on', true)
    end
