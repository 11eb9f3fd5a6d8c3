-- Gives a new relay a cursor a shard. $1 relay, $2 shards, $3 what counts as seen, $4 its bound, $5 of what is visible
-- here (or null), $6 its bound, $7 what stands up to this position counts as seen, too; $8 the era of it all.
insert into outbox.cursor (relay, shard, era, seen, seen_l, until, until_l, after)
select $1, shard, $8, $3::text::pg_snapshot, $4, $5::text::pg_snapshot, $6, $7
from generate_series(0, $2 - 1) as shard
on conflict (relay, shard) do nothing
