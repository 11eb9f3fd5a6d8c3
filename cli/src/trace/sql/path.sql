-- In it, names are found in `pg_catalog` alone, so that no object which others have put into a schema of the path is called.
select pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true)
