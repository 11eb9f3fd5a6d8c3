-- Of the broker's log: how many messages it was given, and how many different ones.
select count(*), count(distinct message.id)
from outbox.message
