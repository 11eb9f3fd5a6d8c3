-- The naive relay has delivered. $1 seen, $2 bound, $3 tx, $4 position.
update soak.cursor set seen = $1::text::pg_snapshot, bound = $2, tx = $3::text::xid8, position = $4
