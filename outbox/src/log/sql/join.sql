-- A process works for a relay, from now on or again. $1 its id, $2 relay, $3 label, $4 build, $5 lease in seconds.
insert into outbox.process (id, relay, label, build, expires_at)
values ($1, $2, $3, $4, clock_timestamp() + make_interval(secs => $5))
on conflict (id) do update set expires_at = excluded.expires_at
