-- Gives up a scheduled message in the caller's transaction. Whether it was still waiting. $1 its id.
select outbox.cancel($1)
