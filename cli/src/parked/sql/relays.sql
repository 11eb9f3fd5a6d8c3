-- The names of the relays. Not their status: that counts the backlog, and a list of what is parked must not wait for it.
select name from outbox.relay order by name
