-- A process lives, by the database's clock. No row: it was thought dead and removed. $1 its id, $2 lease in seconds.
update outbox.process set expires_at = clock_timestamp() + make_interval(secs => $2) where id = $1 returning id
