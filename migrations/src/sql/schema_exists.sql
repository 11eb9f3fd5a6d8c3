-- Whether the schema $1 exists. `create schema if not exists` asks for the right to create one even if it does.
select pg_catalog.to_regnamespace($1) is not null
