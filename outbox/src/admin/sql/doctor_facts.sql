-- What a set-up is, as far as one look at the catalog and the settings tells: one row of facts.
with ours as (
    select c.oid, c.relname, c.relkind, c.relpersistence, c.relrowsecurity
    from pg_class c
    where c.relnamespace = any (array[to_regnamespace('outbox'), to_regnamespace('inbox')]::oid[]) and c.relkind in ('r', 'p')
),
held as (
    select unnest(array['outbox.held_key'::regclass, 'outbox.held_message'::regclass])::oid as oid
),
log as (
    select 'outbox.message'::regclass::oid as oid
    union all
    select i.inhrelid from pg_inherits i where i.inhparent = 'outbox.message'::regclass
),
role as (
    select r.name, to_regrole(r.name)::oid as oid
    from unnest(array[
        'outbox_owner', 'outbox_service', 'outbox_publisher', 'outbox_relay', 'outbox_consumer', 'outbox_operator', 'outbox_monitor'
    ]) as r (name)
)
select current_setting('server_version_num')::integer as server_version,
    current_setting('fsync') = 'on' as fsync,
    current_setting('full_page_writes') = 'on' as full_page_writes,
    current_setting('synchronous_commit') as synchronous_commit,
    current_setting('autovacuum') = 'on' as autovacuum,
    array(
        select coalesce(r.rolname::text, 'every role')
        from pg_db_role_setting s
        left join pg_roles r on r.oid = s.setrole
        where s.setdatabase in (0, (select d.oid from pg_database d where d.datname = current_database()))
            and 'synchronous_commit=off' = any (s.setconfig)
        order by 1
    ) as lazy_roles,
    array(
        select coalesce(r.rolname::text, 'every role')
        from pg_db_role_setting s
        cross join lateral unnest(s.setconfig) c (setting)
        left join pg_roles r on r.oid = s.setrole
        where s.setdatabase in (0, (select d.oid from pg_database d where d.datname = current_database()))
            and c.setting like 'search_path=%'
        order by 1, c.setting
    ) as path_roles,
    array(
        select substr(c.setting, length('search_path=') + 1)
        from pg_db_role_setting s
        cross join lateral unnest(s.setconfig) c (setting)
        left join pg_roles r on r.oid = s.setrole
        where s.setdatabase in (0, (select d.oid from pg_database d where d.datname = current_database()))
            and c.setting like 'search_path=%'
        order by coalesce(r.rolname::text, 'every role'), c.setting
    ) as paths,
    -- Of a session of this role here, not of this transaction.
    (select p.reset_val from pg_settings p where p.name = 'search_path') as path,
    clock_timestamp() as now,
    array(select o.oid::regclass::text from ours o where o.relrowsecurity order by 1) as hidden,
    array(select o.oid::regclass::text from ours o where o.relpersistence <> 'p' order by 1) as unlogged,
    (select count(*) from log) - 1 as leaves,
    s.seqcache as sequence_cache,
    s.seqincrement as sequence_increment,
    array(
        select t.tgname || ' on ' || t.tgrelid::regclass
        from pg_trigger t
        join log on log.oid = t.tgrelid
        where not t.tgisinternal and t.tgparentid = 0 and t.tgenabled <> 'D' and t.tgtype & 2 <> 0
        order by 1
    ) as triggers_before,
    array(
        select t.tgname || ' on ' || t.tgrelid::regclass
        from pg_trigger t
        join log on log.oid = t.tgrelid
        where not t.tgisinternal and t.tgparentid = 0 and t.tgenabled <> 'D' and t.tgtype & 2 = 0
        order by 1
    ) as triggers_after,
    array(
        select r.rulename || ' on ' || r.ev_class::regclass from pg_rewrite r join log on log.oid = r.ev_class order by 1
    ) as rules,
    array(
        -- Ours refuse nothing that the log has.
        select c.conname || ' on ' || c.conrelid::regclass
        from pg_constraint c
        where c.conrelid in (select held.oid from held) and c.contype in ('c', 'u', 'x')
            and c.conname !~ '^held_(key|message)_'
        union all
        select t.tgname || ' on ' || t.tgrelid::regclass
        from pg_trigger t
        where t.tgrelid in (select held.oid from held) and not t.tgisinternal and t.tgenabled <> 'D'
        union all
        select r.rulename || ' on ' || r.ev_class::regclass
        from pg_rewrite r
        where r.ev_class in (select held.oid from held)
        order by 1
    ) as held_rules,
    array(select role.name from role where role.oid is null order by 1) as missing_roles,
    array(
        select o.oid::regclass::text
        from ours o
        join role on role.name = 'outbox_monitor' and role.oid is not null
        where o.relname !~ '^(_migrations|message_[0-9]+)$' and not has_any_column_privilege(role.oid, o.oid, 'select')
        order by 1
    ) as without_rights,
    pg_has_role('pg_read_all_stats', 'usage') as sees_others,
    coalesce(pg_sequence_last_value('outbox.message_position_seq'::regclass), 0) as last_position
from pg_sequence s
where s.seqrelid = 'outbox.message_position_seq'::regclass
