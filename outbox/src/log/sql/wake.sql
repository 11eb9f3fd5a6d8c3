-- Gives the leases of those at rest the end that they would else have had. After who waits for them has joined: one that was
-- about to rest has seen that, or is seen here. $1 relay, $2 process.
update outbox.process p
set expires_at = clock_timestamp() + p.rests, lasts = p.rests, rests = null
where p.relay = $1 and p.id <> $2 and p.rests is not null
