-- Takes back what a handler has set in its transaction, so that our statement after it means what it always means: from left
-- to right, since a role must be taken back before what only another may set. A transaction that was made read-only cannot be
-- made anything else: then this fails.
-- $1 the settings before the handler, in the order of retry.sql
select
    case when pg_catalog.current_setting('session_authorization') <> ($1::text[])[1] then
        pg_catalog.set_config('session_authorization', ($1::text[])[1], true)
    end,
    case when pg_catalog.current_setting('role') <> ($1::text[])[2] then
        pg_catalog.set_config('role', ($1::text[])[2], true)
    end,
    pg_catalog.set_config('search_path', ($1::text[])[3], true),
    pg_catalog.set_config('statement_timeout', ($1::text[])[4], true),
    pg_catalog.set_config('lock_timeout', ($1::text[])[5], true),
    pg_catalog.set_config('row_security', ($1::text[])[6], true),
    case when pg_catalog.current_setting('session_replication_role') <> ($1::text[])[7] then
        pg_catalog.set_config('session_replication_role', ($1::text[])[7], true)
    end,
    case when pg_catalog.current_setting('client_encoding') <> ($1::text[])[8] then
        pg_catalog.set_config('client_encoding', ($1::text[])[8], true)
    end,
    case when pg_catalog.current_setting('transaction_read_only') <> ($1::text[])[9] then
        pg_catalog.set_config('transaction_read_only', ($1::text[])[9], true)
    end
