-- What makes it unsafe to read this log: one row of facts. $1 relay.
select pg_is_in_recovery() as replica,
    current_setting('server_encoding') <> 'UTF8' as other_encoding,
    row_security_active('outbox.message') as hidden_rows,
    (select s.seqcache from pg_sequence s where s.seqrelid = 'outbox.message_position_seq'::regclass) <> 1 as cached_positions,
    exists (
        select from pg_inherits i join pg_class c on c.oid = i.inhrelid
        where i.inhparent = 'outbox.message'::regclass and c.relpersistence <> 'p'
    ) as unlogged,
    (select system_identifier from pg_control_system())
        is distinct from (select c.system_identifier from outbox.cluster c order by c.era desc limit 1) as other_cluster,
    exists (
        select from outbox.cursor c
        where c.relay = $1 and pg_snapshot_xmax(c.seen) > pg_snapshot_xmax(pg_current_snapshot())
    ) as cursor_ahead
