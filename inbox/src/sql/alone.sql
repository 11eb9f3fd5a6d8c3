-- In front of statements that are sent as text, in the same message, which is one transaction: what they see and that they may
-- write, whatever the role or the database has set. No `begin`, which would stay open when one of them fails.
set transaction isolation level read committed, read write
