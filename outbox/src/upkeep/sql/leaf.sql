-- How old a leaf is, and where the log stands: no row if the leaf is empty or no relay reads this log. A leaf is as old
-- as its newest message, by this database's clock, which is answered, too; `aged` if no relay wants it kept any longer. The
-- leaf's number is filled in.
select /*leaf*/::bigint as leaf, pg_sequence_last_value('outbox.message_position_seq'::regclass) as last_position,
    coalesce(newest.enqueued_at < clock_timestamp() - kept.retention, false) as aged, clock_timestamp() as now
from (select m.enqueued_at from outbox.message_/*leaf*/ m order by m.position desc limit 1) newest
cross join (select max(r.retention) as retention, count(*) as relays from outbox.relay r where r.state <> 'retired') kept
where kept.relays > 0
