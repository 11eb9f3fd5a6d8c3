-- Locks the floor, before it is lowered: who removes rows below it has finished, or begins after it. Whether each statement of
-- this transaction sees what was committed before it: above read committed, what was removed would not be seen.
select pg_catalog.current_setting('transaction_isolation') = 'read committed' as sees_all
from inbox.retention
for no key update
