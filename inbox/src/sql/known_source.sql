-- Whether a message that is admitted already came from another source. One that is not known is no other.
-- $1 consumer, $2 message id, $3 source. {day}: the partition of the message's day
select coalesce(source_hash <> inbox.source_hash($3::text), false) as another
from {day}
where message_id = $2::uuid and consumer = $1::text and slot = inbox.slot($2::uuid)
