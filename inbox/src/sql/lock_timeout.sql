-- In front of a lock for which nobody shall queue up behind us.
set local lock_timeout = '50ms'
