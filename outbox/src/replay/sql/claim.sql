-- Makes a process the one that works at a replay, unless another does. The epoch shuts out whoever did. $1 name, $2 lease
-- in seconds. A lease that ends later than it lasts, counted from now, was written when the clock was ahead: it is over. No row: it is another's, or not to be worked at.
update outbox.replay r
set epoch = r.epoch + 1, expires_at = clock_timestamp() + make_interval(secs => $2), lasts = make_interval(secs => $2)
where r.name = $1 and r.state = 'running'
    and (
        r.expires_at is null
        or r.expires_at not between clock_timestamp() and clock_timestamp() + r.lasts + interval '1 minute'
    )
returning r.epoch, r.after, r.to_position, r.published, r.skipped, r.seen::text as seen,
    (select c.first_position from outbox.cluster c where c.era = r.era) as seen_from,
    r.era <> (select max(c.era) from outbox.cluster c)
        or pg_snapshot_xmax(r.seen) > pg_snapshot_xmax(pg_current_snapshot()) as restored
