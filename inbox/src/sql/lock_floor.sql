-- Locks the floor, before it is lowered: who removes rows below it has finished, or begins after it.
select floor from inbox.retention for no key update
