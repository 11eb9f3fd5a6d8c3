-- Admits several messages to a consumer at once and returns the ids of the first copies. The ids come sorted, else two
-- batches that cross would deadlock.
-- $1 consumer, $2 message ids, sorted and each once
insert into inbox.message (message_id, slot, consumer)
select batch.id, inbox.slot(batch.id), $1::text
from pg_catalog.unnest($2::uuid[]) with ordinality as batch (id, number)
order by batch.number
on conflict do nothing
returning message_id
