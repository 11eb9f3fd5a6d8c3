-- The held keys whose next attempt is due, by the database's clock, but for those that wait for a destination. One whose time
-- is later than any could be, counted from now, was given it when the clock was ahead: it is due. $1 relay, $2 shards, $3 the
-- shards wanted, $4 most keys of each kind, $5 seconds that a key waits at most.
(
    select position, slot, attempts
    from outbox.held_key
    where relay = $1 and state = 'retrying' and destination is null and next_attempt_at <= statement_timestamp()
        and (slot % $2) = any ($3)
    order by next_attempt_at
    limit $4
)
union all
(
    select position, slot, attempts
    from outbox.held_key
    where relay = $1 and state = 'retrying' and destination is null
        and next_attempt_at > statement_timestamp() + pg_catalog.make_interval(secs => $5) + interval '1 minute'
        and (slot % $2) = any ($3)
    order by next_attempt_at
    limit $4
)
