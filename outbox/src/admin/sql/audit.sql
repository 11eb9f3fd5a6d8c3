-- What was decided, the latest first. $1 of this relay (null: of all), $2 at most so many.
select a.id, a.at, a.who, a.role, a.action, a.relay, a.replay, a.position, a.message_id, a.reason
from outbox.audit a
where $1::text is null or a.relay = $1
order by a.id desc
limit $2
