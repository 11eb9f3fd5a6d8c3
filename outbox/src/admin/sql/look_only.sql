-- Begins a transaction that cannot write: all of it runs on one server connection, also behind a pooler. A replica takes it.
begin isolation level read committed, read only
