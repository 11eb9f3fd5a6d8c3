-- A replay as it was recorded. $1 its name.
select r.state, r.after, r.to_position, r.published, r.skipped, r.seen::text as seen, r.destination,
    (select c.first_position from outbox.cluster c where c.era = r.era) as seen_from,
    r.asked_from, r.asked_to, r.since, r.until, r.topics, r.kinds, r.keys, r.ids, r.correlations
from outbox.replay r
where r.name = $1
