-- Locks an aggregate and answers its version. $1 key.
select version from soak.aggregate where key = $1 for update
