-- Lets the messages of a held key be admitted past the horizon, up to one of them.
-- $1 consumer, $2 hold, $3 its number
update inbox.held_message set late = true where consumer = $1::text and hold = $2::bigint and arrival <= $3::bigint
