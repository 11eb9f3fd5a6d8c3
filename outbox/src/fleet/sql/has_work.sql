-- Whether a relay may have something to do, without joining it: it has no cursors yet, or one stands half way in a
-- window, or there is a message that none of them has seen, above the bound or by a transaction that was running then; a held
-- key or a scheduled message is due. $1 relay.
with place as (
    -- Snapshots have no equality; their texts have.
    select c.seen::text::pg_snapshot as seen, c.seen_l, bool_or(c.until is not null) as is_half_way
    from outbox.cursor c
    where c.relay = $1
    group by c.seen::text, c.seen_l
)
select not exists (select from place)
    or exists (select from place p where p.is_half_way)
    or exists (
        select from place p
        cross join lateral (
            select from outbox.message m
            where m.position > p.seen_l and not pg_visible_in_snapshot(m.tx, p.seen)
            limit 1
        ) as unseen
    )
    or exists (
        select from place p
        cross join lateral pg_snapshot_xip(p.seen) as x
        where pg_visible_in_snapshot(x, pg_current_snapshot())
            and exists (select from outbox.message m where m.tx = x)
    )
    or exists (
        select from outbox.held_key h
        where h.relay = $1 and h.state = 'retrying' and h.next_attempt_at <= clock_timestamp()
    )
    or exists (select from outbox.scheduled_message m where m.due_at <= statement_timestamp())
