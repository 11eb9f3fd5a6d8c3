-- How many messages of each kind a database's log holds.
select message.kind, count(*)
from outbox.message
group by message.kind
