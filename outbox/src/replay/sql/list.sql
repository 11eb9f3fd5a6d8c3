-- The replays of this database, the latest first. No process works at one whose lease was written when the clock was ahead
-- (claim.sql).
select r.name, r.state, 
    coalesce(r.expires_at between clock_timestamp() and clock_timestamp() + r.lasts + interval '1 minute', false) as working,
    r.after, r.to_position, r.published, r.skipped, r.last_error, r.created_at, r.recorded_at
from outbox.replay r
order by r.created_at desc, r.name
