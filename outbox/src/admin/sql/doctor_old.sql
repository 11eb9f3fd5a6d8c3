-- What holds the whole cluster back, in any of its databases: transactions and prepared transactions older than $1
-- seconds, and replication slots that nobody reads. A role without pg_read_all_stats sees its own transactions only.
select 'transaction' as kind, a.pid::text as name, extract(epoch from clock_timestamp() - a.xact_start)::float8 as seconds,
    coalesce(nullif(a.application_name, ''), a.usename::text, '?') || ' in ' || coalesce(a.datname::text, '?') || ', '
        || coalesce(a.state, '?') as detail
from pg_stat_activity a
where (a.backend_xmin is not null or a.backend_xid is not null) and a.pid <> pg_backend_pid()
    and a.xact_start < clock_timestamp() - make_interval(secs => $1)
union all
select 'prepared', p.gid, extract(epoch from clock_timestamp() - p.prepared)::float8, p.owner || ' in ' || p.database
from pg_prepared_xacts p
where p.prepared < clock_timestamp() - make_interval(secs => $1)
union all
select 'slot', s.slot_name::text, null,
    s.slot_type || coalesce(
        ', ' || pg_size_pretty(
            case when not pg_is_in_recovery() then pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn) end
        ) || ' of WAL', '')
from pg_replication_slots s
where not s.active
order by 1, 2
