-- Takes again the shards that this process owned before it lost sight of them, and of those that nobody alive owns as
-- many as make up $3 with them. Answers their cursors; the epoch shuts out whoever had them. Two processes that look for
-- free shards at the same time do not wait for each other. $1 relay, $2 process.
with dead as materialized (
    -- Not who is renewing its lease at this moment; and who wakes up now waits for this with its renewal.
    select p.id from outbox.process p
    where p.relay = $1 and p.id <> $2
        and p.expires_at not between clock_timestamp() and clock_timestamp() + p.lasts + interval '1 minute'
    for update skip locked
),
orphan as materialized (
    select c.shard, c.epoch,
        coalesce((select p.expires_at from outbox.process p where p.id = c.owner), c.recorded_at) as since
    from outbox.cursor c
    where c.relay = $1 and c.owner is distinct from $2
        and (c.owner is null or c.owner in (select dead.id from dead)
            or not exists (select from outbox.process p where p.id = c.owner))
),
free as (
    select c.shard
    from orphan o
    -- Nobody has taken it since: of its new owner, who may have just joined, nothing is known here.
    join outbox.cursor c on c.relay = $1 and c.shard = o.shard and c.epoch = o.epoch
    -- The one that waits longest first: else those with the highest numbers are always those that are left over.
    order by o.since, o.shard
    limit greatest($3 - (select count(*) from outbox.cursor o where o.relay = $1 and o.owner = $2), 0)
    for update of c skip locked
),
own as materialized (
    -- Locked as what is free is: what an earlier session of this process writes about their held keys comes before, or is
    -- shut out (relay/sql/settle.sql).
    select c.shard from outbox.cursor c where c.relay = $1 and c.owner = $2 order by c.shard for update of c
)
update outbox.cursor c
set owner = $2, epoch = c.epoch + 1, crashes = c.crashes + case when c.owner <> $2 then 1 else 0 end
where c.relay = $1
    and (c.owner = $2 and c.shard = any (array(select own.shard from own)) or c.shard in (select free.shard from free))
returning c.shard, c.epoch, c.ctid::text, c.era, c.seen::text, c.seen_l, c.until::text, c.until_l, c.after, c.crashes
