-- Least privileges for everybody who works with the two schemas. Run it after the migrations, as a superuser
-- (`psql --single-transaction -f roles.sql`), and again after each later one. Either schema may be absent. Whoever has
-- none of these roles, and is no superuser, can do nothing here afterwards.
--
-- The roles cannot log in. Grant them to the ones that can, several where a process does several things:
--
--     grant outbox_service, outbox_relay to orders;                   -- a service with an embedded relay
--     grant outbox_service, outbox_consumer to payments;              -- a service that reacts to events
--     grant outbox_operator, outbox_relay to ada;                     -- a person who also runs replays
--     grant outbox_owner to deploy;                                   -- whoever runs `outbox migrate` from now on
--
--     outbox_owner     owns both schemas and all in them; migrates
--     outbox_service   enqueues, schedules and cancels, in its own transactions
--     outbox_publisher appends to the log of a broker database, for a relay elsewhere; marks of replays, too
--     outbox_relay     reads the log, keeps its cursors and what it holds back, moves what is due into the log, empties
--                      leaves that are done with
--     outbox_consumer  records what it has handled, keeps what it holds back, forgets what lies past the horizon
--     outbox_operator  sees what the monitor sees, and held messages whole; pauses and retires relays, redrives, skips, replays
--     outbox_monitor   sees everything but payloads and headers
--
-- What a relay needs beyond these tables (pg_current_snapshot, pg_current_wal_insert_lsn, pg_current_wal_flush_lsn,
-- pg_logical_emit_message, pg_control_system, pg_walfile_name, pg_stat_get_activity) every role may call unless this server has been hardened.
-- Row-level security on these tables would hide rows from a relay without an error: do not enable it.

-- Roles belong to the whole server: another database may have made them, or be making them now.
do $$
declare
    name text;
begin
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    foreach name in array array[
        'outbox_owner', 'outbox_service', 'outbox_publisher', 'outbox_relay', 'outbox_consumer', 'outbox_operator',
        'outbox_monitor'
    ] loop
        if to_regrole(name) is null then
            begin
                execute format('create role %I nologin', name);
            exception when duplicate_object or unique_violation then
                null;
            end;
        end if;
    end loop;
end
$$;

-- One owner for all, so that whoever may migrate next does not depend on who migrated first; and nothing for `public`,
-- to which PostgreSQL gives the execution of every new function.
do $$
declare
    schema text;
    name text;
begin
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    foreach schema in array array['outbox', 'inbox'] loop
        continue when to_regnamespace(schema) is null;
        execute format('alter schema %I owner to outbox_owner', schema);
        for name in
            select format('alter table %I.%I owner to outbox_owner', schema, relname)
            from pg_catalog.pg_class where relnamespace = to_regnamespace(schema) and relkind in ('r', 'p')
            union all
            select format('alter routine %s owner to outbox_owner', oid::regprocedure)
            from pg_catalog.pg_proc where pronamespace = to_regnamespace(schema)
        loop
            execute name;
        end loop;
        execute format('revoke all on schema %I from public', schema);
        execute format('revoke all on all tables in schema %I from public', schema);
        execute format('revoke all on all sequences in schema %I from public', schema);
        execute format('revoke all on all routines in schema %I from public', schema);
        execute format('grant usage on schema %I to outbox_operator, outbox_monitor', schema);
        execute format('grant select on %I.schema_version to outbox_operator, outbox_monitor', schema);
    end loop;
end
$$;

do $$
declare
    leaf regclass;
begin
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    if to_regnamespace('outbox') is null then
        return;
    end if;
    grant usage on schema outbox to outbox_service, outbox_publisher, outbox_relay;
    grant select on outbox.schema_version, outbox.origin to outbox_service, outbox_publisher, outbox_relay;
    grant select on outbox.origin, outbox.cluster, outbox.relay, outbox.process, outbox.cursor, outbox.held_key,
        outbox.settled_message, outbox.waiting_process, outbox.group_topic, outbox.upkeep
        to outbox_relay, outbox_operator, outbox_monitor;

    -- A service writes and does not read. It chooses neither `tx` nor `position`, on which every reader's cursor rests,
    -- nor `enqueued_at`, and gets nothing back: the id is its own. Neither does a publisher, but the log takes the mark of a
    -- replay from those who may see positions.
    grant insert (id, correlation, causation, occurred_at, source, topic, kind, key, headers, payload)
        on outbox.message to outbox_service, outbox_publisher;
    grant select (position) on outbox.message to outbox_publisher;
    grant insert (due_at, id, correlation, causation, occurred_at, source, topic, kind, key, headers, payload)
        on outbox.scheduled_message to outbox_service;
    grant execute on all functions in schema outbox to outbox_service;

    -- A relay changes no message. Positions come from a sequence, whose last value bounds what can be new. What it may
    -- do to the log, whose rows it otherwise only reads, is to empty a leaf, and a right on the log is not one on its
    -- leaves.
    grant select on outbox.message to outbox_relay;
    for leaf in select inhrelid::regclass from pg_catalog.pg_inherits where inhparent = 'outbox.message'::regclass loop
        execute format('grant select, truncate on %s to outbox_relay', leaf);
    end loop;
    grant select on sequence outbox.message_position_seq to outbox_relay, outbox_operator, outbox_monitor;
    grant insert, update (shards, changes, retention, left_at, is_group, destination) on outbox.relay to outbox_relay;
    grant insert, update, delete on outbox.process, outbox.waiting_process to outbox_relay;
    grant insert (relay, pattern) on outbox.group_topic to outbox_relay;
    grant insert, update on outbox.cursor to outbox_relay;
    grant insert, update, delete on outbox.held_key to outbox_relay;
    grant select, insert, delete on outbox.held_message, outbox.settled_message to outbox_relay;
    -- It writes down what a policy has given up in its name. Nobody changes what is written down.
    grant insert (who, action, relay, replay, position, message_id, reason) on outbox.audit to outbox_relay, outbox_operator;
    grant select on outbox.audit to outbox_operator, outbox_monitor;
    grant update (holder, expires_at, lasts, rests) on outbox.upkeep to outbox_relay;
    -- What is due it moves as it is. (To lock a row takes a right to update; of this column it is of no use.)
    grant select, delete, update (number) on outbox.scheduled_message to outbox_relay;
    grant insert (id, correlation, causation, occurred_at, source, topic, kind, key, headers, payload)
        on outbox.message to outbox_relay;

    grant select (tx, position, slot, id, correlation, causation, occurred_at, enqueued_at, source, topic, kind, key)
        on outbox.message to outbox_operator, outbox_monitor;
    grant select (due_at, number, id, correlation, causation, occurred_at, source, topic, kind, key)
        on outbox.scheduled_message to outbox_operator, outbox_monitor;
    grant select (relay, position, held, id, correlation, causation, occurred_at, enqueued_at, source, topic, kind, key, bytes)
        on outbox.held_message to outbox_monitor;

    -- An operator asks, and the shard's owner does it: the next attempt is brought forward, or a message is dropped.
    -- Who decides what becomes of a held message may look at it. Nobody may change one: what is published is what was
    -- enqueued.
    grant select, delete on outbox.held_message to outbox_operator;
    grant insert, delete on outbox.settled_message to outbox_operator;
    grant update (state, attempts, next_attempt_at, last_error, destination), delete on outbox.held_key to outbox_operator;
    grant update (state, changes) on outbox.relay to outbox_operator;
    -- It asks for replays, and sees what one would publish. To run it is to read payloads, which takes outbox_relay, too.
    for leaf in select inhrelid::regclass from pg_catalog.pg_inherits where inhparent = 'outbox.message'::regclass loop
        execute format(
            'grant select (tx, position, slot, id, correlation, causation, occurred_at, enqueued_at, source, topic, kind, key)
            on %s to outbox_operator', leaf);
    end loop;
    grant select on outbox.replay to outbox_relay, outbox_operator, outbox_monitor;
    grant insert, update (state, after, published, skipped, last_error, epoch, expires_at, lasts, recorded_at)
        on outbox.replay to outbox_operator;
end
$$;

do $$
declare
    leaf regclass;
begin
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    if to_regnamespace('inbox') is null then
        return;
    end if;
    grant usage on schema inbox to outbox_consumer;
    grant select on inbox.schema_version to outbox_consumer;
    grant select on inbox.message, inbox.consumer, inbox.consumer_kind, inbox.process, inbox.quarantine,
        inbox.retention, inbox.emptied_day, inbox.held_key
        to outbox_consumer, outbox_operator, outbox_monitor;
    -- The table's check calls the one with the rights of whoever inserts, the index of what is held the other.
    grant execute on function inbox.slot, inbox.source_hash to outbox_consumer, outbox_operator;

    -- A consumer writes down what it has handled and cannot change it. It forgets what lies past the horizon: a day by
    -- emptying its partition, and a right on the table is not one on its partitions; what has no day row by row.
    grant insert on inbox.message to outbox_consumer;
    for leaf in select inhrelid::regclass from pg_catalog.pg_inherits where inhparent = 'inbox.message'::regclass loop
        execute format('grant select, delete, truncate on %s to outbox_consumer', leaf);
    end loop;
    grant insert, update on inbox.consumer, inbox.consumer_kind to outbox_consumer;
    grant update on inbox.retention to outbox_consumer;
    grant insert, update on inbox.emptied_day to outbox_consumer;
    grant insert, update, delete on inbox.process, inbox.held_key to outbox_consumer;
    grant select, insert, delete on inbox.held_message to outbox_consumer;
    grant insert, delete on inbox.quarantine to outbox_consumer;

    grant select (
        consumer, hold, arrival, received_at, message_id, correlation, causation, occurred_at, source, topic, kind, key,
        late
    ) on inbox.held_message to outbox_monitor;

    -- What an operator gives up counts as handled, so that a later copy of it is a repeat.
    grant select, update (late), delete on inbox.held_message to outbox_operator;
    grant update (state, attempts, next_attempt_at, last_error, tried_by), delete on inbox.held_key to outbox_operator;
    grant insert (message_id, received_at, source_hash, slot, consumer) on inbox.message to outbox_operator;
    grant insert (who, action, consumer, hold, message_id, kind, reason) on inbox.audit to outbox_operator;
    -- It forgets a kind that no process handles any more.
    grant delete on inbox.consumer_kind to outbox_operator;
    grant select on inbox.audit to outbox_operator, outbox_monitor;
end
$$;
