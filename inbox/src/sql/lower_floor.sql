-- Lowers the floor. After `lock_floor`, in its transaction.
-- $1 to this moment
update inbox.retention set floor = $1::timestamptz where floor > $1::timestamptz
