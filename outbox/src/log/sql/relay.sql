-- What is known of a relay. $1 name.
select shards, state from outbox.relay where name = $1
