-- What this database is called.
select current_database()::text
