-- Whether each statement of this transaction sees what was committed before it.
select pg_catalog.current_setting('transaction_isolation') = 'read committed' as sees_all
