-- A message goes to the quarantine, because its connection was lost in each of its tries.
-- $1 consumer, $2 message id
insert into inbox.quarantine (consumer, message_id) values ($1::text, $2::uuid) on conflict do nothing
