-- Ends a replay that is not finished, so that the log need not keep anything for it, and writes down who decided it.
-- $1 name, $2 who, $3 why. Answers the state before; no row: no such replay.
with known as (
    select r.name, r.state from outbox.replay r where r.name = $1 for update
),
cancelled as (
    update outbox.replay r
    set state = 'cancelled', expires_at = null, recorded_at = clock_timestamp()
    from known
    where r.name = known.name and known.state = 'running'
    returning r.name
),
written as (
    insert into outbox.audit (who, action, replay, reason) select $2::text, 'cancel', cancelled.name, $3::text from cancelled
)
select known.state as was from known
