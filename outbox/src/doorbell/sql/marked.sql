-- The mark that this session was asked for at its start: what the setting is reset to, which SET does not change. None: a
-- pooler stands before the session, which may be others', too, even if it repeats to each what its client asked for.
select pg_catalog.set_config('outbox.doorbell', null, true)
