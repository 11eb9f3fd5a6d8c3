-- The first statement of a retry's transaction: locks the held key against other processes, which go on appending to
-- it, and admits its first message. No row: another process has claimed the key meanwhile. It waits for the lock:
-- skipping a key that another process only looks whether to release would leave this try counted and not made. An id that
-- is held since before for a message from another source is left to that one. `day` and `locked_floor` as in admit.sql.
-- $1 consumer, $2 hold, $3 attempts, $4 arrival, $5 message id, $6 when the message was made (null: undated), $7 whether
-- a person lets it in late, $8 source (null: unknown), $9 process. {day}: the partition of the message's day
with day as (
    select from {day} where false
), locked as materialized (
    select hold from inbox.held_key
    where consumer = $1::text and hold = $2::bigint and attempts = $3::integer and state = 'retrying'
        and tried_by = $9::uuid
    for no key update
), waiting as materialized (
    select held_message.received_at from inbox.held_message
    join locked on locked.hold = held_message.hold
    where held_message.consumer = $1::text and held_message.arrival = $4::bigint
), locked_floor as materialized (
    select floor from inbox.retention
    where pg_catalog.current_setting('transaction_isolation') in ('repeatable read', 'serializable')
    for share
), judged as materialized (
    select
        not $7::boolean and coalesce($6::timestamptz < coalesce(
            (select floor from locked_floor), (select floor from inbox.retention)), false) as too_old,
        exists (
            select from inbox.held_message
            where consumer = $1::text and message_id = $5::uuid and arrival < $4::bigint
                and inbox.source_hash(source) <> inbox.source_hash($8::text)
        ) as another_source
), admitted as (
    insert into inbox.message (message_id, received_at, attempts, source_hash, slot, consumer)
    select $5::uuid, waiting.received_at, $3::integer, inbox.source_hash($8::text), inbox.slot($5::uuid), $1::text
    from waiting, judged
    where not judged.too_old and not judged.another_source
    on conflict do nothing
    returning 1
)
select
    exists (select from admitted) as first,
    judged.too_old,
    judged.another_source,
    pg_current_xact_id_if_assigned()::text as transaction,
    pg_backend_pid() as backend,
    array[
        pg_catalog.current_setting('session_authorization'), pg_catalog.current_setting('role'),
        pg_catalog.current_setting('search_path'), pg_catalog.current_setting('statement_timeout'),
        pg_catalog.current_setting('lock_timeout'), pg_catalog.current_setting('row_security'),
        pg_catalog.current_setting('session_replication_role'), pg_catalog.current_setting('client_encoding'),
        pg_catalog.current_setting('transaction_read_only')
    ] as settings
from locked, judged
