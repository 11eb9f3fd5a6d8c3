-- Begins a transaction that cannot write; a replica takes it.
begin isolation level read committed, read only
