-- Keeps appenders away from a held key, so that `release` sees all that were there.
-- $1 consumer, $2 hold
select state from inbox.held_key where consumer = $1::text and hold = $2::bigint for update
