-- A process of the relay by its label, whether it is thought alive, and the time (in seconds). $1 label.
select p.id, p.expires_at > clock_timestamp() as alive, extract(epoch from clock_timestamp())::float8 as now
from outbox.process p
where p.label = $1
