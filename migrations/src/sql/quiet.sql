-- For this transaction: names are found in `pg_catalog` alone, and "relation already exists, skipping" at every start would be
-- noise in the service's log.
select pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true),
    pg_catalog.set_config('client_min_messages', 'warning', true)
