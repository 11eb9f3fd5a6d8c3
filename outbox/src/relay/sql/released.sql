-- Those of some keys that are not held any more, each with its messages that are settled. $1 relay, $2 the positions that name
-- the holds. One row without a message: none.
select gone.position as held, s.position, s.slot, s.tx::text as tx
from pg_catalog.unnest($2::bigint[]) as gone (position)
left join outbox.settled_message s on s.relay = $1 and s.held = gone.position
where not exists (select from outbox.held_key h where h.relay = $1 and h.position = gone.position)
