-- What was decided, the latest first.
-- $1 of this consumer (null: of all), $2 at most so many
select id, at, who, role, action, consumer, hold, message_id, kind, reason
from inbox.audit
where $1::text is null or consumer = $1::text
order by id desc
limit $2::bigint
