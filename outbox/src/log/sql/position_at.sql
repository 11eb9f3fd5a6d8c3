-- The position of the first visible message that was enqueued at or after a moment, or null; a position below which none
-- was, visible or not; and whether the moment is yet to come.
-- Times have no index; they follow positions closely, so the place is found by halving. Closely: a writer draws the position
-- a little before it reads the clock, and a clock may be set. So it is halved for a second earlier, and from there each row
-- is looked at. $1 the moment.
with recursive halving (low, high) as (
    select 1::bigint, coalesce(pg_sequence_last_value('outbox.message_position_seq'::regclass), 0) + 1
    union all
    select case when probe.early then probe.position + 1 else h.low end,
        case when probe.early then h.high else h.middle end
    from (select low, high, (low + high) / 2 as middle from halving where low < high) h
    left join lateral (
        select m.position, m.enqueued_at < $1::timestamptz - interval '1 second' as early
        from outbox.message m
        where m.position >= h.middle
        order by m.position
        limit 1
    ) probe on true
),
place as (
    select least(max(low), min(high)) as low from halving
)
select $1::timestamptz > clock_timestamp() as ahead,
    (select low from place) as floor,
    (
        select m.position
        from outbox.message m
        where m.position >= (select low from place) and m.enqueued_at >= $1::timestamptz
        order by m.position
        limit 1
    ) as position
