-- Makes a relay known, once. $1 name, $2 shards if it is new.
insert into outbox.relay (name, shards) values ($1, $2) on conflict (name) do nothing
