-- The first message above a position that is of none of some topics. $1 position, $2 topics, $3 shards, $4 the shards wanted.
select m.position, m.topic
from outbox.message m
where m.position > $1 and m.topic <> all ($2::text[]) and (m.slot % $3) = any ($4::smallint[])
order by m.position
limit 1
