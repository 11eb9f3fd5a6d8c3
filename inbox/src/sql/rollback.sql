-- Ends what a handler may have begun in place of the transaction that it was given.
rollback
