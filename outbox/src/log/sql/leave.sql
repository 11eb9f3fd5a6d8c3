-- A process ends. $1 its id.
delete from outbox.process where id = $1
