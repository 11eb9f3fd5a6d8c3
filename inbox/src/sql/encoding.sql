-- The encoding of this database.
select current_setting('server_encoding') as encoding
