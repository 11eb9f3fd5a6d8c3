-- Whether the connection is outside a transaction: inside one, time has passed since it began.
select transaction_timestamp() = statement_timestamp()
