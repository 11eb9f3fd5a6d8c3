-- A name for the log of this database that no other has while the server runs: when it was started, which a copy of it does
-- not share, and the database in it. Any role may ask.
select pg_catalog.format('%s/%s', extract(epoch from pg_postmaster_start_time()), d.oid) from pg_database d
where d.datname = current_database()
