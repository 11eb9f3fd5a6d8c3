-- Takes back the admission of messages by this transaction.
-- $1 consumer, $2 message ids. {slot}: the partition's number
delete from inbox.message_{slot} where consumer = $1::text and message_id = any ($2::uuid[])
