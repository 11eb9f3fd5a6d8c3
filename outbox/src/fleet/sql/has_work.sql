-- Whether a relay may have something to do, without joining it: it has no cursors yet, or one stands half way in a
-- window, or there is a message that its shard's has not seen, above the bound or by a transaction that was running then; a
-- held key or a scheduled message is due. $1 relay.
with place as (
    -- Snapshots have no equality; their texts have.
    select c.seen::text::pg_snapshot as seen, c.seen_l, bool_or(c.until is not null) as is_half_way, r.shards as parts,
        array_agg(c.shard) as shards
    from outbox.cursor c
    join outbox.relay r on r.name = c.relay
    where c.relay = $1
    group by c.seen::text, c.seen_l, r.shards
)
select not exists (select from place)
    or exists (select from place p where p.is_half_way)
    or exists (
        select from place p
        cross join lateral (
            select from outbox.message m
            where m.position > p.seen_l and not pg_visible_in_snapshot(m.tx, p.seen)
                and m.slot % p.parts = any (p.shards)
            limit 1
        ) as unseen
    )
    or exists (
        select from place p
        cross join lateral pg_snapshot_xip(p.seen) as x
        where pg_visible_in_snapshot(x, pg_current_snapshot())
            and exists (select from outbox.message m where m.tx = x and m.slot % p.parts = any (p.shards))
    )
    or exists (
        select from outbox.held_key h
        where h.relay = $1 and h.state = 'retrying' and h.next_attempt_at <= statement_timestamp()
    )
    or exists (select from outbox.scheduled_message m where m.due_at <= statement_timestamp())
