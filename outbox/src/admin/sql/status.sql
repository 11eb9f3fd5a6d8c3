-- How far each relay is. Delivered is what is visible in `seen`, and what is visible in `until` up to `after`, within the
-- cursor's era; nothing of a later one. Shards that stand at the same place are counted together: what lies above the lower
-- bound, and what transactions wrote below it that were running when `seen` was taken.
with era as (
    select c.era, c.first_position,
        coalesce(lead(c.first_position) over (order by c.era) - 1, 9223372036854775807) as last_position
    from outbox.cluster c
),
place as (
    -- Snapshots have no equality; their texts have.
    select c.relay, r.shards, array_agg(c.shard) as owned, c.seen::text::pg_snapshot as seen, c.seen_l,
        c.until::text::pg_snapshot as until, c.after, e.first_position, e.last_position
    from outbox.cursor c
    join outbox.relay r on r.name = c.relay
    join era e on e.era = c.era
    group by c.relay, r.shards, c.seen::text, c.seen_l, c.until::text, c.after, e.first_position, e.last_position
),
backlog as (
    select p.relay, sum(behind.messages)::bigint as messages, min(behind.oldest) as oldest
    from place p
    cross join lateral (
        select count(*) as messages,
            -- From before its constraint it may be infinite, from which nothing can be subtracted.
            min(least(greatest(m.enqueued_at, '1970-01-01 00:00:00+00'), '9999-12-31 00:00:00+00')) as oldest
        from (
            select m.tx, m.position, m.slot, m.enqueued_at
            from outbox.message m
            where m.position > p.seen_l
                and (m.position > p.last_position or not pg_visible_in_snapshot(m.tx, p.seen))
            union all
            select m.tx, m.position, m.slot, m.enqueued_at
            from outbox.message m
            where m.tx = any (array(select pg_snapshot_xip(p.seen)))
                and m.position >= p.first_position and m.position <= p.seen_l
        ) m
        where (m.slot % p.shards) = any (p.owned)
            and not (
                p.until is not null and m.position <= least(p.after, p.last_position)
                and pg_visible_in_snapshot(m.tx, p.until)
            )
    ) behind
    group by p.relay
),
waiting as (
    select w.relay, count(*) as processes, min(w.since) as since,
        (array_agg(w.reason order by w.expires_at desc))[1] as reason
    from outbox.waiting_process w
    where w.expires_at between clock_timestamp() and clock_timestamp() + w.lasts + interval '1 minute'
    group by w.relay
),
living as (
    -- A lease that ends later than it lasts was written when the clock was ahead: it is over.
    select p.relay, p.id, p.label, p.destination, p.fingerprint
    from outbox.process p
    where p.expires_at between clock_timestamp() and clock_timestamp() + p.lasts + interval '1 minute'
),
relay as (
    select r.name, r.state, r.shards, r.created_at, r.left_at, r.is_group, r.destination from outbox.relay r
    union all
    -- A new relay is made known when its broker has answered.
    select w.relay, 'running', 0::smallint, w.since, null, false, null
    from waiting w
    where not exists (select from outbox.relay r where r.name = w.relay)
)
select r.name as relay, r.state, r.shards,
    coalesce(b.messages, 0) as pending,
    b.oldest,
    coalesce(extract(epoch from clock_timestamp() - b.oldest), 0)::float8 as lag_seconds,
    (select count(*) from living p where p.relay = r.name) as processes,
    coalesce(w.processes, 0) as waiting,
    w.reason as waiting_for,
    (
        select count(*) from outbox.cursor c join living p on p.id = c.owner where c.relay = r.name
    ) as owned_shards,
    (select count(*) from outbox.held_key h where h.relay = r.name and h.state = 'retrying') as retrying,
    (select count(*) from outbox.held_key h where h.relay = r.name and h.state = 'parked') as parked,
    (
        select count(*) from outbox.held_key h where h.relay = r.name and h.state = 'retrying' and h.reason = 'backlog'
    ) as set_aside,
    (
        select count(*)
        from outbox.held_key h
        join outbox.held_message m on m.relay = h.relay and m.held = h.position
        where h.relay = r.name and h.state = 'parked'
    ) as parked_messages,
    (select count(*) from outbox.held_message m where m.relay = r.name) as held_messages,
    (select coalesce(sum(m.bytes), 0)::bigint from outbox.held_message m where m.relay = r.name) as held_bytes,
    -- A process that died leaves its row until another one of the relay joins; one that stopped says so in `left_at`.
    case
        when w.relay is not null or exists (select from living p where p.relay = r.name) then null
        else greatest(r.created_at, r.left_at, (select max(p.expires_at) from outbox.process p where p.relay = r.name))
    end as unattended_since,
    r.is_group, r.destination,
    array(
        select p.label || ': ' || coalesce(p.destination, '?')
        from living p
        where p.relay = r.name and p.fingerprint is not null
            and exists (select from living o where o.relay = r.name and o.fingerprint <> p.fingerprint)
        order by p.label
    ) as split
from relay r
left join backlog b on b.relay = r.name
left join waiting w on w.relay = r.name
order by r.name
