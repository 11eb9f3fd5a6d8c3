-- Makes the next versions of an aggregate that is locked. $1 key, $2 how many.
update soak.aggregate set version = version + $2 where key = $1 returning version
