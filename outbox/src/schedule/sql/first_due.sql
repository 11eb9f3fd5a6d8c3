-- The first message that is due, by its number. $1 due after this, $2 none of these numbers.
select m.number
from outbox.scheduled_message m
where m.due_at > $1 and m.due_at <= statement_timestamp() and m.number <> all ($2)
order by m.due_at, m.number
limit 1
