-- Which consumers of this database have handled which of some messages. $1 message ids.
select h.message_id, h.consumer, h.received_at, h.handled_at, h.attempts
from inbox.message h
where h.message_id = any ($1)
order by h.handled_at, h.consumer
