-- The version this database is at, and the oldest build it serves; null if no migration has said so.
select pg_catalog.max(version), pg_catalog.max(serves) from outbox.schema_version
