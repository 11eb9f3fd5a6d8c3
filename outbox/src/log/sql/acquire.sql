-- Takes the shards of a relay that nobody owns, whose owner is dead, or that this process owned before it lost sight of
-- them, and answers their cursors. The epoch shuts out whoever had them. $1 relay, $2 process.
update outbox.cursor c
set owner = $2, epoch = c.epoch + 1, crashes = c.crashes + case when c.owner <> $2 then 1 else 0 end
where c.relay = $1
    and (
        c.owner = $2
        or not exists (select from outbox.process p where p.id = c.owner and p.expires_at > clock_timestamp())
    )
returning c.shard, c.epoch, c.ctid::text, c.seen::text, c.seen_l, c.until::text, c.until_l, c.after
