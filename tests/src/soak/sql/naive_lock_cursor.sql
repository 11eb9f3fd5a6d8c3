-- Where the naive relay stands, until it has moved on. For parallel processes that claim one after another.
select seen::text as seen, bound, tx::text as tx, position from soak.cursor for update
