-- The hold of a held message. No row: it is not held.
-- $1 consumer, $2 the message's number
select hold from inbox.held_message where consumer = $1::text and arrival = $2::bigint
