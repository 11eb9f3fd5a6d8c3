-- The version of a key whose lock is held: a read, so that the enqueue is the transaction's first write. $1 key.
select version from soak.counter where key = $1
