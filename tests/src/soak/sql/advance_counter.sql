-- Makes the next versions of a key whose lock is held. $1 key, $2 how many.
update soak.counter set version = version + $2 where key = $1
