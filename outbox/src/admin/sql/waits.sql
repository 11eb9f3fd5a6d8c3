-- The destinations that held keys wait for, each with how many of them there are, since when, and what the broker said.
select h.relay, h.destination, count(*) as keys, pg_catalog.min(h.held_at) as since, pg_catalog.max(h.last_error) as error
from outbox.held_key h
where h.destination is not null
group by h.relay, h.destination
order by h.relay, h.destination
