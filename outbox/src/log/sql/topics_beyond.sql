-- The topics of the next rows of the log above a position, and the last of these rows: a row a topic, or one without a topic.
-- A null for the last: there are no rows. $1 position, $2 shards, $3 the shards wanted, $4 most rows.
with part as materialized (
    select m.position, m.topic, m.slot
    from outbox.message m
    where m.position > $1
    order by m.position
    limit $4
)
select l.last, t.topic
from (select pg_catalog.max(p.position) as last from part p) l
left join (select distinct p.topic from part p where (p.slot % $2) = any ($3::smallint[])) t on true
