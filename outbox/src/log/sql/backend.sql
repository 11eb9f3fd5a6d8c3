-- The server process that answers. By the server's start, too: where processes are numbered anew, as in a container, the same
-- number comes back.
select format('%s %s', pg_backend_pid(), extract(epoch from pg_postmaster_start_time()))
