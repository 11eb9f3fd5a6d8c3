-- Raises the floor to the longest horizon of any consumer plus a margin, to the day. Returns it, and the database's now.
-- $1 seconds to keep at least, $2 margin in seconds
update inbox.retention
set floor = greatest(floor, pg_catalog.date_trunc('day', clock_timestamp() - $2::bigint::float8 * interval '1 second' - greatest(
    $1::bigint::float8 * interval '1 second', (select pg_catalog.max(horizon) from inbox.consumer)), 'UTC'))
returning floor, clock_timestamp() as now
