-- Counts an attempt at each of some held keys before it is made, under their shards' epochs, and answers the positions of the
-- messages to try: the first ones of each key. One attempt too many, because the last ones ended with their process, parks the
-- key instead. No row of a key: parked, or its lease is lost, or it is not to be tried, or others have taken all the bytes. A
-- null for a position: nothing is held any more. The messages are read afterwards (messages_to_try.sql): a client that stands
-- still while a long answer is on its way would keep these locks. $1 relay, then one array a column: $2 position that names the hold, $3 shard,
-- $4 epoch, $9 attempts made, if one more may have been counted that was not made (null: none was). $5 seconds after which they
-- are due again if nobody says what came of it, $6 attempts allowed, $7 most messages a key, $8 bytes of payload after which no
-- more messages are taken.
with asked as (
    select w.position, w.shard, w.epoch, w.made, w.number
    from unnest($2::bigint[], $3::smallint[], $4::bigint[], $9::integer[])
        with ordinality as w (position, shard, epoch, made, number)
    join outbox.cursor c on c.relay = $1 and c.shard = w.shard and c.epoch = w.epoch
),
waiting as (
    select a.position as held, a.shard, a.epoch, a.made, m.position,
        sum(coalesce(m.bytes, 0)) over (order by a.number, m.position rows unbounded preceding) - coalesce(m.bytes, 0)
            as bytes_before
    from asked a
    left join lateral (
        select h.position, octet_length(h.payload)::bigint as bytes
        from outbox.held_message h
        where h.relay = $1 and h.held = a.position
        order by h.position
        limit $7::bigint
    ) m on true
),
chosen as (
    select w.held, w.shard, w.epoch, w.made, array_agg(w.position) as positions
    from waiting w
    where w.bytes_before < $8::bigint
    group by w.held, w.shard, w.epoch, w.made
),
hold as materialized (
    -- In the order in which others lock them. It carries what is chosen: two lists without statistics would be compared row
    -- by row.
    select c.held, c.shard, c.epoch, c.made, c.positions
    from chosen c
    join outbox.held_key h on h.relay = $1 and h.position = c.held
    order by h.position
    for no key update of h
),
owned as materialized (
    -- The epoch under a lock that acquire.sql waits for, and a record does not: another process may have acquired the shard
    -- since, and read what this would change. Few: it is joined to no list.
    select c.shard
    from outbox.cursor c
    join (select distinct hold.shard, hold.epoch from hold) asked on asked.shard = c.shard and asked.epoch = c.epoch
    where c.relay = $1
    order by c.shard
    for key share of c
),
attempt as (
    update outbox.held_key h
    set state = case when least(h.attempts, c.made) >= $6 then 'parked' else h.state end,
        attempts = least(h.attempts, c.made) + case when least(h.attempts, c.made) >= $6 then 0 else 1 end,
        next_attempt_at = case
            when least(h.attempts, c.made) >= $6 then null
            -- It has no time of its own, and without a new one no index changes.
            when h.destination is not null then h.next_attempt_at
            else clock_timestamp() + make_interval(secs => $5)
        end,
        reason = case when least(h.attempts, c.made) >= $6 then 'suspected' else h.reason end,
        destination = case when least(h.attempts, c.made) >= $6 then null else h.destination end
    from hold c
    where h.relay = $1 and h.position = c.held and h.state = 'retrying'
        and c.shard = any (array(select owned.shard from owned))
    returning h.position, h.attempts, h.state, c.positions
)
select a.position as held, a.attempts, a.positions from attempt a where a.state = 'retrying' order by a.position
