-- Different messages of one source in a log, a service's own or the broker's. $1 source.
select count(distinct message.id)
from outbox.message
where message.source = $1
