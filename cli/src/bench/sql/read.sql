-- What a dump or a report takes: a lock on the log and on every leaf that keeps nobody from writing.
lock table outbox.message in access share mode
