-- Takes the upkeep's lease, if nobody has it, or renews it; says whether it is held now, and in how many seconds it ends. While
-- another process has it, nothing is written, unless that one rests: its lease then gets the end that it would else have had.
-- One that ends later than it lasts, counted from now, was written when the clock was ahead: it is over. $1 holder, $2 seconds
-- that it lasts, $3 seconds that it would else last, if whoever takes it rests, or null.
with held as (
    update outbox.upkeep
    set holder = $1, expires_at = clock_timestamp() + make_interval(secs => $2), lasts = make_interval(secs => $2),
        rests = make_interval(secs => $3)
    where holder is null or holder = $1
        or expires_at not between clock_timestamp() and clock_timestamp() + lasts + interval '1 minute'
    returning expires_at
),
waked as (
    update outbox.upkeep
    set expires_at = clock_timestamp() + rests, lasts = rests, rests = null
    where holder <> $1 and rests is not null
        and expires_at between clock_timestamp() and clock_timestamp() + lasts + interval '1 minute'
    returning expires_at
)
select exists (select from held) as is_held,
    extract(epoch from coalesce((select h.expires_at from held h), (select w.expires_at from waked w), u.expires_at)
        - clock_timestamp())::float8 as ends_in
from outbox.upkeep u
