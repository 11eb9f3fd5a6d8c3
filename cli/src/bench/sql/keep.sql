-- How long delivered messages are kept. $1 seconds.
update outbox.relay set retention = make_interval(secs => $1)
