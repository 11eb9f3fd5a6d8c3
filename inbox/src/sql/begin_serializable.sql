-- Begins a handler's transaction that commits only as if no other had run beside it.
begin isolation level serializable, read write
