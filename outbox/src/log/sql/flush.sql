-- Flushes the WAL up to here: a commit that wrote something and waits for it. One that wrote nothing flushes nothing.
with waiting as materialized (select pg_catalog.set_config('synchronous_commit', 'on', true))
select pg_catalog.pg_logical_emit_message(true, 'outbox', '') from waiting
