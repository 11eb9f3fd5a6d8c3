-- Brings the block range indexes of some leaves up to their newest blocks, which would be scanned otherwise. Only their
-- owner may. $1 the leaves' names.
select brin_summarize_new_values(i.indexrelid)
from pg_index i
join pg_class indexes on indexes.oid = i.indexrelid
join pg_am method on method.oid = indexes.relam
where i.indrelid = any ($1::text[]::regclass[]) and method.amname = 'brin' and pg_has_role(indexes.relowner, 'usage')
