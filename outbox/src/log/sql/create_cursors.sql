-- Gives a new relay a cursor a shard. $1 relay, $2 shards, $3 what counts as seen, $4 its bound.
insert into outbox.cursor (relay, shard, era, seen, seen_l)
select $1, shard, (select max(era) from outbox.cluster), $3::text::pg_snapshot, $4 from generate_series(0, $2 - 1) as shard
on conflict (relay, shard) do nothing
