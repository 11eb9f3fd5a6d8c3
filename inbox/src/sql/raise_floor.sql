-- Raises the floor.
-- $1 to this moment
update inbox.retention set floor = $1::timestamptz where floor < $1::timestamptz
