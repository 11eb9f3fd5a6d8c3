-- Read committed, whatever the session's default: who has waited for the lock must see what the other has done.
begin isolation level read committed, read write
