-- In a transaction whose next statement may be long: the server counts a statement that is still coming in as silence.
select pg_catalog.set_config('idle_in_transaction_session_timeout', '5min', true)
