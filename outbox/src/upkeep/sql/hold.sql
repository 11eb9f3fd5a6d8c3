-- Takes the upkeep's lease, if nobody has it, or renews it; says whether it is held now, and in how many seconds it ends.
-- Writes nothing while another process has it. $1 holder, $2 lease in seconds.
with held as (
    update outbox.upkeep
    set holder = $1, expires_at = clock_timestamp() + make_interval(secs => $2)
    where holder is null or holder = $1 or expires_at <= clock_timestamp()
    returning expires_at
)
select exists (select from held) as is_held,
    extract(epoch from coalesce((select h.expires_at from held h), u.expires_at) - clock_timestamp())::float8 as ends_in
from outbox.upkeep u
