-- The mark that the listening session was asked for at its start. None: a pooler stands before it, and the session is others',
-- too.
select current_setting('outbox.doorbell', true)
