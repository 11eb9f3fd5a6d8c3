-- The floor; it is not lowered before the end of the transaction, which removes rows below it.
select floor from inbox.retention for share
