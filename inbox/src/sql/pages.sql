-- How many pages a partition has. {slot}: its number.
select pg_catalog.pg_relation_size('inbox.message_{slot}') / pg_catalog.current_setting('block_size')::bigint as pages
