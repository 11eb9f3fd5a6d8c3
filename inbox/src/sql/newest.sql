-- The newest id of a day's partition. {slot}: its number.
select message_id from inbox.message_{slot} order by message_id desc limit 1
