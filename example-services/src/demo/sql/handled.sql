-- How many messages a service's inbox has handled.
select count(*) from inbox.message
