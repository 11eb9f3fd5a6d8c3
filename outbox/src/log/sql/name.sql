-- A name for the log of this database that no other has: the cluster, and the database in it.
select format('%s/%s', c.system_identifier, d.oid) from pg_control_system() c, pg_database d
where d.datname = current_database()
