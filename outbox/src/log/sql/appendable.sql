-- What makes it unsafe to append to this log: one row of facts. A role that may only append can ask it.
select pg_is_in_recovery() as replica,
    pg_catalog.current_setting('server_encoding') <> 'UTF8' as other_encoding,
    (select s.seqcache from pg_sequence s where s.seqrelid = 'outbox.message_position_seq'::regclass::oid) <> 1 as cached_positions,
    exists (
        select from pg_inherits i join pg_class c on c.oid = i.inhrelid
        where i.inhparent = 'outbox.message'::regclass::oid and c.relpersistence <> 'p'
    ) as unlogged,
    pg_catalog.current_setting('fsync') = 'on' and pg_catalog.current_setting('full_page_writes') = 'on' as waits_for_disk
