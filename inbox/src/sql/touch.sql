-- The last statement of a try, or of its handler's part in it: fails in an aborted transaction, whose COMMIT the driver
-- would call a success; answers whether this is still the transaction that admitted the message, and whether the handler has
-- set what a statement of ours after it rests on (`restore.sql`). The commit waits for the disk, whatever the handler has set.
-- $1 transaction id, $2 the settings before the handler, in the order of retry.sql (null: nothing of ours comes after it)
select
    coalesce(pg_current_xact_id_if_assigned()::text = $1::text, false) as same,
    $2::text[] is not null and $2::text[] operator(pg_catalog.<>) array[
        pg_catalog.current_setting('session_authorization'), pg_catalog.current_setting('role'),
        pg_catalog.current_setting('search_path'), pg_catalog.current_setting('statement_timeout'),
        pg_catalog.current_setting('lock_timeout'), pg_catalog.current_setting('row_security'),
        pg_catalog.current_setting('session_replication_role'), pg_catalog.current_setting('client_encoding'),
        pg_catalog.current_setting('transaction_read_only')
    ] as changed,
    case pg_catalog.current_setting('synchronous_commit') when 'off' then
        pg_catalog.set_config('synchronous_commit', 'on', true)
    end as durable
