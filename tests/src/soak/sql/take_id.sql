-- Gives the transaction its id before it does anything else.
select pg_current_xact_id()::text
