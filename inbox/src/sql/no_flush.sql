-- The commit of this transaction does not wait for the disk: for what may be forgotten in a crash of the server.
select pg_catalog.set_config('synchronous_commit', 'off', true)
