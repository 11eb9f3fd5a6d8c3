-- Begins a transaction that only reads, each statement what was committed before it, whatever the role or the database has set.
begin isolation level read committed, read only
