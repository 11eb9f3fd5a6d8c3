-- Gives up a scheduled message in the caller's transaction, if it is still waiting. $1 its id.
delete from outbox.scheduled_message m where m.id = $1
