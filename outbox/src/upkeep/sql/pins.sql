-- The relays and replays that have not delivered every message of a leaf, and so pin it; none, and nobody needs it any more.
-- What is not proven to be delivered pins. $1 how many to name at most (null: all). The leaf's number is filled in.
--
-- Delivered is what is visible in `seen`, and what is visible in `until` up to `after`. Said the other way round, so that
-- each part is a short walk along an index: what began after the later snapshot, what was running when it was taken, and,
-- with a window open, what lies above `after` and began after `seen` or was running then. `order by ... limit 1` keeps the
-- planner on the index on (tx, position), and so does the comparison of rows: it cannot know how little lies above the
-- snapshots, and would scan the leaf. It overrates the cost, too: interpret.sql goes first.
-- Through the parent, on which everybody who may look has that right, and with the leaf in a condition, so that no other
-- leaf is locked.
with top as materialized (
    select m.position from outbox.message m where ((m.position >> 20) & 15) = /*leaf*/ order by m.position desc limit 1
),
place as materialized (
    -- Shards that stand at the same place are looked at together. Snapshots have no equality; their texts have.
    select c.relay, r.shards, array_agg(c.shard) as owned, c.era, c.seen::text::pg_snapshot as seen, c.seen_l,
        c.until::text::pg_snapshot as until, coalesce(c.until, c.seen)::text::pg_snapshot as latest,
        coalesce(c.until_l, c.seen_l) as latest_l, c.after
    from outbox.cursor c
    join outbox.relay r on r.name = c.relay
    where r.state <> 'retired'
    group by c.relay, r.shards, c.era, c.seen::text, c.seen_l, c.until::text, coalesce(c.until, c.seen)::text,
        coalesce(c.until_l, c.seen_l), c.after
)
select pinning.relay from (
    select r.name as relay
    from outbox.relay r
    cross join top
    where r.state <> 'retired' and (
        -- It has begun, and not with every shard yet.
        (select count(*) from outbox.cursor c where c.relay = r.name) < r.shards
        -- A restored log: no snapshot in it means anything here until it is repaired.
        or (select s.system_identifier from pg_control_system() s)
            is distinct from (select e.system_identifier from outbox.cluster e order by e.era desc limit 1)
        or exists (
            select from place p
            join outbox.cluster era on era.era = p.era
            left join lateral (
                select e.first_position from outbox.cluster e where e.era > p.era order by e.era limit 1
            ) later on true
            where p.relay = r.name and (
                -- Of a later era than the cursor, which therefore cannot have seen it, whatever the numbers say.
                top.position >= later.first_position
                -- Of an earlier one and above the cursor's bound: the numbers prove nothing.
                or (
                    select true from outbox.message m
                    where ((m.position >> 20) & 15) = /*leaf*/ and m.position > p.seen_l and m.position < era.first_position
                    order by m.position limit 1
                )
                -- A cluster that went back to before the cursor was recorded.
                or later.first_position is null and pg_snapshot_xmax(p.latest) > pg_snapshot_xmax(pg_current_snapshot())
                or top.position > p.latest_l and (
                    select true from outbox.message m
                    where ((m.position >> 20) & 15) = /*leaf*/ and m.tx >= pg_snapshot_xmax(p.latest)
                        and m.position > p.latest_l and (m.slot % p.shards) = any (p.owned)
                    order by m.tx, m.position limit 1
                )
                or (
                    select true from pg_snapshot_xip(p.latest) as running (tx)
                    cross join lateral (
                        select from outbox.message m
                        where ((m.position >> 20) & 15) = /*leaf*/
                            and (m.tx, m.position) > (running.tx, 0) and (m.tx, m.position) <= (running.tx, top.position)
                            and (m.slot % p.shards) = any (p.owned)
                        order by m.tx, m.position limit 1
                    ) late
                    limit 1
                )
                or p.until is not null and top.position > p.after and (
                    (
                        select true from outbox.message m
                        where ((m.position >> 20) & 15) = /*leaf*/ and m.tx >= pg_snapshot_xmax(p.seen)
                            and m.position > greatest(p.after, p.seen_l) and (m.slot % p.shards) = any (p.owned)
                        order by m.tx, m.position limit 1
                    )
                    or (
                        select true from pg_snapshot_xip(p.seen) as running (tx)
                        cross join lateral (
                            select from outbox.message m
                            where ((m.position >> 20) & 15) = /*leaf*/
                                and (m.tx, m.position) > (running.tx, p.after)
                                and (m.tx, m.position) <= (running.tx, top.position)
                                and (m.slot % p.shards) = any (p.owned)
                            order by m.tx, m.position limit 1
                        ) late
                        limit 1
                    )
                )
            )
        )
    )
    union all
    -- A replay that is not finished pins what it has yet to read.
    select 'replay ' || r.name
    from outbox.replay r
    where r.state = 'running' and exists (
        select from outbox.message m
        where ((m.position >> 20) & 15) = /*leaf*/ and m.position > r.after and m.position <= r.to_position
        limit 1
    )
) as pinning (relay)
limit $1
