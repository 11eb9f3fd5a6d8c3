-- Keeps appenders away from held keys, so that `release_all` sees all that were there. Waits for no other transaction: a
-- key that is locked is released later.
-- $1 consumer, $2 holds
select hold from inbox.held_key
where consumer = $1::text and hold = any ($2::bigint[])
order by hold
for update skip locked
