-- Lets the messages of a held key be admitted past the horizon.
-- $1 consumer, $2 hold
update inbox.held_message set late = true where consumer = $1::text and hold = $2::bigint
