-- The replays of this database, the latest first.
select r.name, r.state, coalesce(r.expires_at > clock_timestamp(), false) as working, r.after, r.to_position, r.published,
    r.skipped, r.last_error, r.created_at, r.recorded_at
from outbox.replay r
order by r.created_at desc, r.name
