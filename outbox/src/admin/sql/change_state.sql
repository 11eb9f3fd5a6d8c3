-- Changes the state of a relay that is not retired, counts that, so that its processes notice, and writes down who decided
-- it. $1 relay, $2 the state, $3 the action, $4 who, $5 why or null. Answers the state before and whether it is another
-- now; no row: no such relay.
with known as (
    select r.name, r.state from outbox.relay r where r.name = $1 for update
),
changed as (
    update outbox.relay r
    set state = $2, changes = r.changes + 1
    from known
    where r.name = known.name and known.state not in ($2, 'retired')
    returning r.name
),
forgotten as (
    -- It reads nothing again.
    delete from outbox.settled_message s using changed where s.relay = changed.name and $2 = 'retired'
),
written as (
    insert into outbox.audit (who, action, relay, reason) select $4, $3, changed.name, $5 from changed
)
select known.state as was, exists (select from changed) as changed from known
