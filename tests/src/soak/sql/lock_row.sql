-- Locks an aggregate and makes its next versions. $1 key, $2 how many. Answers the last of them.
update soak.aggregate set version = version + $2 where key = $1 returning version
