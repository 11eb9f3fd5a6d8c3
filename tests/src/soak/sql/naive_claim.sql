-- Takes the shard that waits longest of those that nobody has, for a short while, and answers where it stands. $1 process, $2 seconds.
update soak.shard s
set owner = $1, expires_at = clock_timestamp() + make_interval(secs => $2), epoch = s.epoch + 1
where s.shard = (
    select free.shard from soak.shard free
    where free.owner is null or free.expires_at < clock_timestamp()
    order by free.expires_at nulls first limit 1
    for update skip locked
)
returning s.shard, s.epoch, s.seen::text as seen, s.bound, s.until::text as until, s.done
