-- The workflows that a message belongs to, or that it began. $1 its id.
-- No limit in any branch: it would talk the planner into walking the log instead of the block range index.
select distinct m.correlation from outbox.message m where m.id = $1
union
select distinct m.correlation from outbox.message m where m.correlation = $1
union
select distinct h.correlation from outbox.held_message h where h.id = $1 or h.correlation = $1
