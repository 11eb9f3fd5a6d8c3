-- Begins a transaction in which each statement sees what was committed before it, whatever the role or the database has set.
begin isolation level read committed, read write
