-- Ends a backend whose handler's statement goes on after its time, so that its locks are given up at once; only while it is
-- at the handler's transaction, since afterwards a pooler may have given it to another client. Answers what it was at before:
-- whether it lived, whether a statement was running, whether the transaction had failed, and if so, whether it was to be rolled
-- back still (null: the server does not say); and whether a statement outside of a transaction of ours could write at all.
-- $1 backend, $2 transaction id
with before as materialized (
    select
        coalesce(backend.pid is not null, false) as alive,
        coalesce(backend.state = 'active', false) as active,
        coalesce(backend.backend_xid = $2::text::xid8::xid, false) as ours,
        coalesce(pg_catalog.pg_xact_status($2::text::xid8) = 'aborted', false) as failed,
        case when backend.state <> 'disabled' then backend.state = 'idle in transaction (aborted)' end as stands
    from (values (1)) as answer
    left join pg_catalog.pg_stat_activity as backend on backend.pid = $1::integer
)
select
    alive, active, failed, stands,
    pg_catalog.current_setting('default_transaction_read_only') = 'on' as guarded,
    case when ours then pg_catalog.pg_terminate_backend($1::integer) end as ended
from before
