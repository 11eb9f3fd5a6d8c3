-- Until when another process works at a replay, and how many seconds that is from now. $1 name.
select r.expires_at, extract(epoch from r.expires_at - clock_timestamp())::float8 as seconds
from outbox.replay r
where r.name = $1 and r.state = 'running'
