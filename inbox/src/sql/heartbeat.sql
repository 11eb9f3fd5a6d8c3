-- A process of a consumer says that it lives, and removes those that no longer do. Returns how many those were.
-- $1 process, $2 consumer, $3 milliseconds until it is taken for dead
with mine as (
    insert into inbox.process (id, consumer, expires_at)
    values ($1::uuid, $2::text, clock_timestamp() + $3::bigint::float8 * interval '1 millisecond')
    on conflict (id) do update set expires_at = excluded.expires_at
), dead as (
    delete from inbox.process
    where consumer = $2::text and id <> $1::uuid and expires_at < clock_timestamp()
    returning 1
)
select count(*) from dead
