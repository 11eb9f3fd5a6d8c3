-- Takes the upkeep's lease, if nobody has it, or renews it; says whether it is held now, and in how many seconds it ends. While
-- another process has it, nothing is written, unless it ends after $4 or later, because that process rests: then it must
-- be heard of from now on. $1 holder, $2 seconds that it lasts if it is held, $3 seconds that it lasts when somebody waits, $4 seconds.
with held as (
    update outbox.upkeep
    set holder = $1, expires_at = clock_timestamp() + make_interval(secs => $2)
    where holder is null or holder = $1 or expires_at <= clock_timestamp()
    returning expires_at
),
waiting as (
    update outbox.upkeep
    set expires_at = clock_timestamp() + make_interval(secs => $3)
    where holder <> $1 and expires_at > clock_timestamp() + make_interval(secs => $4)
    returning expires_at
)
select exists (select from held) as is_held,
    extract(epoch from coalesce((select h.expires_at from held h), (select w.expires_at from waiting w), u.expires_at)
        - clock_timestamp())::float8 as ends_in
from outbox.upkeep u
