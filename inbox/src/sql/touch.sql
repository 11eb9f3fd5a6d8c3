-- The last statement before COMMIT: fails in an aborted transaction, whose COMMIT the driver would call a success, and
-- answers whether this is still the transaction that admitted the message.
-- $1 transaction id
select coalesce(pg_current_xact_id_if_assigned()::text = $1::text, false) as same
