-- A process of a relay waits for its broker. Those that have said nothing for long are forgotten. $1 its id, $2 relay,
-- $3 label, $4 what the broker has answered, $5 seconds for which that holds.
with dead as (
    delete from outbox.waiting_process w
    where w.expires_at not between clock_timestamp() and clock_timestamp() + w.lasts + interval '1 minute'
        and w.id <> $1
)
insert into outbox.waiting_process (id, relay, label, reason, expires_at, lasts)
values (
    $1, $2, $3, $4, clock_timestamp() + pg_catalog.make_interval(secs => $5), pg_catalog.make_interval(secs => $5)
)
on conflict (id) do update set reason = excluded.reason, expires_at = excluded.expires_at, lasts = excluded.lasts
