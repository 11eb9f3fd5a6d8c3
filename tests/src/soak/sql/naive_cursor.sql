-- Where the naive relay stands.
select seen::text as seen, bound, tx::text as tx, position from soak.cursor
