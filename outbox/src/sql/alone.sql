-- In front of a statement that is sent as text, in the same message: it sees what was committed before it, whatever the role or
-- the database has set. A serializable one could fail for what writers do, and make them fail.
set transaction isolation level read committed
