-- A process does not wait for its broker any more. $1 its id.
delete from outbox.waiting_process w where w.id = $1
