-- Begins a handler's transaction in which all statements see the same.
begin isolation level repeatable read, read write
