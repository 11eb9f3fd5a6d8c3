-- A process lives, by the database's clock, and sees how its relay's shards are shared now. No row: it was thought dead
-- and removed. `was_dead`: its lease had ended; what others took of it while this waited for them is not seen here. `rank` counts the living processes that began before it; `expires_in`: seconds until the first other
-- process would be dead if it were not heard of; `overdue` counts the shards that nobody alive has owned for half a lease. $1 relay, $2 process, $3 lease in seconds.
with renewed as (
    update outbox.process p
    set expires_at = clock_timestamp() + make_interval(secs => $3), lasts = make_interval(secs => $3), rests = null
    from outbox.process before
    where p.id = $2 and before.id = p.id
    -- Also by a lease that ends later than it lasts: it was written when the clock was ahead.
    returning p.id,
        before.expires_at not between clock_timestamp() and clock_timestamp() + before.lasts + interval '1 minute' as was_dead
),
living as (
    select p.id, p.expires_at from outbox.process p
    where p.relay = $1 and (
        p.id = $2 or p.expires_at between clock_timestamp() and clock_timestamp() + p.lasts + interval '1 minute'
    )
)
select renewed.was_dead, r.state, r.changes,
    (select count(*) from living) as processes,
    (select count(*) from living l where l.id < $2) as rank,
    (select extract(epoch from min(l.expires_at) - clock_timestamp())::float8 from living l where l.id <> $2) as expires_in,
    c.shards, c.free, c.overdue, c.owned, c.epochs
from renewed
join outbox.relay r on r.name = $1
cross join lateral (
    select count(*) as shards,
        count(*) filter (where not exists (select from living l where l.id = o.owner)) as free,
        count(*) filter (where not exists (select from living l where l.id = o.owner)
            and coalesce((select p.expires_at from outbox.process p where p.id = o.owner), o.recorded_at)
                < clock_timestamp() - make_interval(secs => $3 / 2)) as overdue,
        coalesce(array_agg(o.shard order by o.shard) filter (where o.owner = $2), '{}') as owned,
        coalesce(array_agg(o.epoch order by o.shard) filter (where o.owner = $2), '{}') as epochs
    from outbox.cursor o
    where o.relay = $1
) c
