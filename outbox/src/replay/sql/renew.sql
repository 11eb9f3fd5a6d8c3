-- The process that works at a replay lives, by the database's clock. No row: it is another's now, or cancelled. $1 name,
-- $2 epoch, $3 lease in seconds.
update outbox.replay r
set expires_at = clock_timestamp() + make_interval(secs => $3), lasts = make_interval(secs => $3)
where r.name = $1 and r.epoch = $2 and r.state = 'running'
returning r.epoch
