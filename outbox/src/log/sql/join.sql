-- A process works for a relay, from now on or again. The others see it at their next look, if it is new. $1 its id,
-- $2 relay, $3 label, $4 build, $5 lease in seconds.
with joined as (
    insert into outbox.process (id, relay, label, build, expires_at, lasts)
    values ($1, $2, $3, $4, clock_timestamp() + make_interval(secs => $5), make_interval(secs => $5))
    on conflict (id) do update set expires_at = excluded.expires_at, lasts = excluded.lasts, rests = null
    returning xmax = 0 as is_new
)
update outbox.relay r set changes = r.changes + 1 from joined where r.name = $2 and joined.is_new
