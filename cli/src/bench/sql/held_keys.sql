-- How many keys the relay holds.
select count(*) from outbox.held_key
