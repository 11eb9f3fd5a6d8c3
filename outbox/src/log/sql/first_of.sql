-- The first position that any of these transactions has written, or null. $1 transaction ids.
select pg_catalog.min(position) from outbox.message where ((position >> 20) & 15::bigint) in (/*leaves*/) and tx = any ($1::text[]::xid8[])
