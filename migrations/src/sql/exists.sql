-- Whether the table $1 exists, asked so that a missing one aborts no transaction.
select pg_catalog.to_regclass($1) is not null
