-- The encoding of this database.
select pg_catalog.current_setting('server_encoding') as encoding
