-- What makes it unsafe to read this log: one row of facts. Ahead of the cluster's transaction ids is what a statement can
-- never see in the life that wrote it: a cursor, or one of the last messages, from this snapshot's xmax on. Of every relay:
-- where one cursor is ahead, the ids that all others rest on are given out again.
with present as (
    select c.era, c.system_identifier, c.first_position from outbox.cluster c order by c.era desc limit 1
),
last as materialized (
    select m.position, m.tx from outbox.message m order by m.position desc limit 1000
)
select pg_is_in_recovery() as replica,
    current_setting('server_encoding') <> 'UTF8' as other_encoding,
    row_security_active('outbox.message') as hidden_rows,
    (select s.seqcache from pg_sequence s where s.seqrelid = 'outbox.message_position_seq'::regclass) <> 1 as cached_positions,
    exists (
        select from pg_inherits i join pg_class c on c.oid = i.inhrelid
        where i.inhparent = 'outbox.message'::regclass and c.relpersistence <> 'p'
    ) as unlogged,
    (select system_identifier from pg_control_system()) is distinct from (select p.system_identifier from present p)
        as other_cluster,
    exists (
        select from outbox.cursor c join present p on p.era = c.era
        where greatest(pg_snapshot_xmax(c.seen), pg_snapshot_xmax(c.until)) > pg_snapshot_xmax(pg_current_snapshot())
    ) or exists (
        select from last join present p on last.position >= p.first_position
        where last.tx >= pg_snapshot_xmax(pg_current_snapshot())
    ) as ids_behind,
    exists (
        select from last
        where last.position > (select coalesce(pg_sequence_last_value('outbox.message_position_seq'::regclass), 0))
    ) as positions_behind
