-- How many keys are held back, by relays and by the consumer.
select (select count(*) from outbox.held_key) + (select count(*) from inbox.held_key)
