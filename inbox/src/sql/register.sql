-- Writes down who consumes here and how far back, which is what pruning keeps.
-- $1 consumer, $2 horizon in seconds
insert into inbox.consumer (name, horizon)
values ($1::text, $2::bigint::float8 * interval '1 second')
on conflict (name) do update set horizon = excluded.horizon, started_at = clock_timestamp()
