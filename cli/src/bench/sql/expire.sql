-- When the rows of the consumer's processes, all of them killed, expire. $1 seconds from now.
update inbox.process set expires_at = clock_timestamp() + $1::double precision * interval '1 second'
