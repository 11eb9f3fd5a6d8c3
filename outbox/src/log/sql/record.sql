-- Records cursors, each under its epoch, at the row version written last: so the update never walks over the dead
-- versions that a held snapshot keeps. $1 relay, then one array a column: $2 ctid, $3 shard, $4 epoch, $5 seen,
-- $6 seen_l, $7 until, $8 until_l, $9 after, $11 era. $10: 'off' where losing the record in a crash only repeats messages.
-- Answers the rows written; one that is missing was written by somebody else (record_by_shard.sql).
with waiting as materialized (select set_config('synchronous_commit', $10, true))
update outbox.cursor c
set era = r.era, seen = r.seen, seen_l = r.seen_l, until = r.until, until_l = r.until_l, after = r.after,
    crashes = case
        when c.seen::text = r.seen::text and c.until::text is not distinct from r.until::text and c.after = r.after
            then c.crashes
        else 0
    end,
    recorded_at = clock_timestamp()
from unnest($2::text[]::tid[], $3::smallint[], $4::bigint[], $5::text[]::pg_snapshot[], $6::bigint[], $7::text[]::pg_snapshot[], $8::bigint[],
        $9::bigint[], $11::integer[]) as r (tid, shard, epoch, seen, seen_l, until, until_l, after, era),
    waiting
where c.ctid = r.tid and c.relay = $1 and c.shard = r.shard and c.epoch = r.epoch
returning c.shard, c.ctid::text
