-- Records how far a replay is, under its epoch, and writes down what was given up on the way. No row: it is another's now,
-- or cancelled. $1 name, $2 epoch, $3 all is done up to this position, $4 published since the last record, $5 lease in
-- seconds (null: the process lets go), $6 the state, $7 why it stops (null: it does not); of what was given up one array a
-- column: $8 position, $9 id, $10 what the broker said; $11 who asked for the replay.
with recorded as (
    update outbox.replay r
    set after = $3, published = r.published + $4, skipped = r.skipped + cardinality($8::bigint[]), state = $6,
        last_error = $7::text, recorded_at = clock_timestamp(),
        expires_at = clock_timestamp() + make_interval(secs => $5), lasts = coalesce(make_interval(secs => $5), r.lasts)
    where r.name = $1 and r.epoch = $2 and r.state = 'running'
    returning r.name, r.published, r.skipped
),
written as (
    insert into outbox.audit (who, action, replay, position, message_id, reason)
    select $11::text, 'skip', recorded.name, g.position, g.id, g.reason
    from recorded
    cross join unnest($8::bigint[], $9::uuid[], $10::text[]) as g (position, id, reason)
    order by g.position
)
select published, skipped from recorded
