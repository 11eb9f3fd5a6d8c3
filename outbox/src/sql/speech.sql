-- In a transaction whose next statement may be long, a MiB or two: the server counts a statement that is still coming in as
-- silence. No longer than a slow way takes: what a client that stands still has locked, others wait for.
select pg_catalog.set_config('idle_in_transaction_session_timeout', '10s', true)
