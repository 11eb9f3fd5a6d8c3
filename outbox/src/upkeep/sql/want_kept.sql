-- Says how long a relay wants delivered messages kept; whether the relay is known. $1 relay, $2 seconds.
with said as (
    update outbox.relay set retention = make_interval(secs => $2)
    where name = $1 and retention is distinct from make_interval(secs => $2)
)
select exists (select from outbox.relay where name = $1)
