-- A process works for a relay, from now on or again. The others see it at their next look, if it is new; those at rest, whose
-- leases end after $6 or later, must be heard of from now on. $1 its id, $2 relay, $3 label, $4 build, $5 lease in seconds, $6 seconds.
with joined as (
    insert into outbox.process (id, relay, label, build, expires_at)
    values ($1, $2, $3, $4, clock_timestamp() + make_interval(secs => $5))
    on conflict (id) do update set expires_at = excluded.expires_at
    returning xmax = 0 as is_new
),
announced as (
    update outbox.relay r set changes = r.changes + 1 from joined where r.name = $2 and joined.is_new
    returning r.name
)
-- After it: see rest.sql.
update outbox.process p
set expires_at = clock_timestamp() + make_interval(secs => $5)
from announced
where p.relay = announced.name and p.id <> $1 and p.expires_at > clock_timestamp() + make_interval(secs => $6)
