-- Declares which messages a process is about to try for the first time, before it tries them.
-- $1 process, $2 message ids, both as literals
update inbox.process set in_hand = $2::uuid[] where id = $1::uuid
