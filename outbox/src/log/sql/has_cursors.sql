-- Whether the relay has begun. $1 relay.
select exists (select from outbox.cursor where relay = $1)
