-- What became of transaction $1 (text): 'committed', 'aborted', 'in progress', or null if that is too long ago.
select pg_catalog.pg_xact_status($1::xid8)
