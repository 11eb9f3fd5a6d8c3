-- Begins a transaction that cannot write: all of it runs on one server connection, also behind a pooler.
begin read only
