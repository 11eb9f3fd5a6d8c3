-- The first message that is due, by its number, and its key. $1 due after this, $2 none of these numbers, $3 of none of
-- these keys.
select m.number, m.key
from outbox.scheduled_message m
where m.due_at > $1 and m.due_at <= statement_timestamp() and m.number <> all ($2)
    and (m.key is null or m.key <> all ($3))
order by m.due_at, m.number
limit 1
