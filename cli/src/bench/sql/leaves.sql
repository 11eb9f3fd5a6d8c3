-- How many leaves of the log hold anything, and how much disk all of them take.
select count(*) filter (where pg_relation_size(inhrelid) > 0), sum(pg_total_relation_size(inhrelid))::bigint
from pg_inherits
where inhparent = 'outbox.message'::regclass
