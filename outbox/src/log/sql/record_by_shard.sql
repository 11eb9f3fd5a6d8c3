-- Records one cursor under its epoch, wherever its row is. No row: the lease is lost. $1 relay, $2 shard, $3 epoch,
-- $4 seen, $5 seen_l, $6 until, $7 until_l, $8 after, $9 era.
update outbox.cursor c
set era = $9, seen = $4::text::pg_snapshot, seen_l = $5, until = $6::text::pg_snapshot, until_l = $7, after = $8,
    crashes = case
        when c.seen::text = $4 and c.until::text is not distinct from $6 and c.after = $8 then c.crashes else 0
    end,
    recorded_at = clock_timestamp()
where c.relay = $1 and c.shard = $2 and c.epoch = $3
returning c.shard, c.ctid::text
