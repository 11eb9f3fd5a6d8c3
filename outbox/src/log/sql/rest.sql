-- A process that is alone and has nothing to do need not be heard of for long. No row: it is not alone any more; whoever is
-- about to join is waited for. $1 relay, $2 process, $3 seconds that its lease lasts, $4 seconds that it would else last, $5 how
-- often the sharing has changed as far as it knows.
with alone as materialized (
    select r.name from outbox.relay r
    where r.name = $1 and r.changes = $5
        and not exists (select from outbox.process o where o.relay = $1 and o.id <> $2)
    for share
)
update outbox.process p
set expires_at = clock_timestamp() + make_interval(secs => $3), lasts = make_interval(secs => $3), rests = make_interval(secs => $4)
from alone
where p.id = $2
