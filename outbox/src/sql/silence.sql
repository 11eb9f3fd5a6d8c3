-- How long the server waits for the next word of this transaction before it ends the connection: a client that stands still
-- in the middle, or cannot be reached, would else keep its locks for as long as it does.
select pg_catalog.set_config('idle_in_transaction_session_timeout', '1s', true)
