-- Fails if the transaction is aborted, which the driver's commit would not say; answers its id, if it has one.
select pg_current_xact_id_if_assigned()::text
