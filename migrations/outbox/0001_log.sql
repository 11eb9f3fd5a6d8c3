-- The log, its readers' cursors, and what they hold back. See docs/wire.md for how a column maps to the wire.
--
-- For one transaction: until it ends, names are found in `pg_catalog` alone, so that no object which others have put into a
-- schema of the path is called here, or becomes a part of what is made.
set local search_path = pg_catalog, pg_temp;
set local default_table_access_method = heap;

-- Bookkeeping first: which schema this is, and the oldest build it still serves (docs/operations.md).
create table outbox.schema_version (
    version integer primary key,
    serves integer not null check (serves between 1 and version),
    applied_at timestamptz not null default now()
);
insert into outbox.schema_version (version, serves) values (1, 1);

-- What this database calls itself on the wire (CloudEvents `source`) when a message names none.
create table outbox.origin (
    source text not null check (source ~ '^[!-~]{1,200}$'),
    one_row boolean primary key default true check (one_row)
);
insert into outbox.origin (source)
values ('/' || left(coalesce(nullif(regexp_replace(current_database(), '[^A-Za-z0-9._-]', '-', 'g'), ''), 'db'), 63));

-- Transaction ids mean something only within one cluster's life. An era is such a life; a restore begins another.
create table outbox.cluster (
    era integer primary key check (era > 0),
    system_identifier bigint not null,
    first_position bigint not null,
    opened_at timestamptz not null default now()
);
insert into outbox.cluster (era, system_identifier, first_position)
select 1, system_identifier, 1 from pg_control_system();

-- The log. Append-only: rows are never updated, and leave only when a whole leaf is truncated.
--
-- `tx` stands before `position`, so that the transaction id is assigned before the position is drawn; every reader's
-- lower bound rests on that. `position` is for order only; `id` is the identity, made by the producer, and the log does
-- not enforce that it is unique. `slot` is computed here, so that producers in every language agree on it.
-- A ring of 16 leaves of 2^20 positions: no DDL ever runs again, and a lap over a leaf that is not yet free appends to it.
create table outbox.message (
    tx xid8 not null default pg_current_xact_id(),
    position bigint not null generated always as identity (cache 1),
    slot smallint not null generated always as (
        (case when key is null then uuid_hash_extended(id, 0) else hashtextextended(key collate "C", 0) end & 1023)::smallint
    ) stored,
    id uuid not null,
    correlation uuid not null,
    causation uuid,
    occurred_at timestamptz not null default now(),
    enqueued_at timestamptz not null default clock_timestamp(),
    source text not null,
    topic text not null,
    kind text not null,
    key text,
    headers jsonb,
    payload bytea not null,
    constraint message_id_not_nil check (id <> '00000000-0000-0000-0000-000000000000'),
    constraint message_correlation_not_nil check (correlation <> '00000000-0000-0000-0000-000000000000'),
    constraint message_causation_not_nil check (causation <> '00000000-0000-0000-0000-000000000000'),
    constraint message_source check (source ~ '^[!-~]{1,200}$'),
    constraint message_topic check (octet_length(topic) <= 200 and topic ~ '^[A-Za-z0-9_-]+([.][A-Za-z0-9_-]+)*$'),
    constraint message_kind check (kind ~ '^[!-~]{1,200}$'),
    constraint message_key check (octet_length(key) between 1 and 512),
    -- A broker's log takes the mark of a replay, which nobody can enqueue, and which does not count.
    constraint message_headers check (
        jsonb_typeof(headers) = 'object'
        and octet_length(headers::text) - coalesce(octet_length(headers ->> 'outbox-replay') + 21, 0) <= 16384
        and not jsonb_path_exists(headers, E'$.keyvalue() ? (
            !(@.key like_regex "^[a-z0-9][a-z0-9._-]{0,63}$") || @.key starts with "ce-" || @.key starts with "nats-"
            || @.key starts with "webhook-" || (@.key starts with "outbox-" && @.key != "outbox-replay")
            || @.value.type() != "string" || @.value like_regex "[\\\\x01-\\\\x1f\\\\x7f]"
            || (@.key == "outbox-replay" && !(@.value like_regex "^[a-z0-9][a-z0-9._-]{0,62}$")))')
    ),
    -- A service may not: of those who may insert, it alone does not see positions (roles.sql).
    constraint message_replay check (
        headers ->> 'outbox-replay' is null or has_column_privilege('outbox.message', 'position', 'select')
    ),
    constraint message_payload check (octet_length(payload) <= 983040),
    constraint message_occurred_at check (
        occurred_at >= '1970-01-01 00:00:00+00' and occurred_at < '10000-01-01 00:00:00+00'
    ),
    constraint message_enqueued_at check (
        enqueued_at >= '1970-01-01 00:00:00+00' and enqueued_at < '10000-01-01 00:00:00+00'
    )
) partition by list (((position >> 20) & 15));

do $$
begin
    for leaf in 0..15 loop
        execute format('create table outbox.message_%s partition of outbox.message for values in (%s)', leaf, leaf);
    end loop;
end
$$;

-- A reader goes by position. What a transaction that was open for long has written lies below the reader's lower bound
-- and is found by its transaction id.
create index message_position on outbox.message (position);
create index message_tx on outbox.message (tx, position);
-- A UUIDv7 is nearly in insertion order, so a block range index finds one message or one workflow at no cost to the writer.
create index message_id on outbox.message using brin (id uuid_minmax_multi_ops) with (autosummarize = on);
create index message_correlation on outbox.message using brin (correlation uuid_minmax_multi_ops)
    with (autosummarize = on);

-- A relay is a name with cursors of its own. `changes` counts what its running processes should look at: a process that
-- came, shards that were handed over, another state. They read it with every look at the log. Retired is for good: what
-- such a relay would have published may be gone. `retention` is how long its processes want delivered messages kept, null
-- until one has said so; the longest of all relays counts. `left_at` is when one of them last said goodbye. `is_group`: it
-- is a consumer group of this log; `destination` is what its processes registered last, for a person.
create table outbox.relay (
    name text primary key check (name ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
    shards smallint not null default 16 check (shards between 1 and 1024),
    state text not null default 'running' check (state in ('running', 'paused', 'retired')),
    changes bigint not null default 0,
    retention interval check (retention >= interval '0'),
    left_at timestamptz,
    is_group boolean not null default false,
    destination text,
    created_at timestamptz not null default now()
);

-- A running process of a relay. Heartbeats are written here and never to a cursor row, which is hot enough.
create table outbox.process (
    id uuid primary key,
    relay text not null references outbox.relay (name),
    label text not null,
    build text not null,
    started_at timestamptz not null default clock_timestamp(),
    expires_at timestamptz not null,
    -- What its lease lasts. One that ends later than it can, counted from now, was written when the clock was ahead: it is over.
    lasts interval not null default '1 hour',
    -- What its lease would else last, while it rests.
    rests interval,
    -- What it publishes to, without a secret: the kind and address of its broker, and its routes; of a consumer group, the
    -- topics that it asks for. Processes of one relay with different fingerprints split its log.
    destination text,
    fingerprint uuid
) with (fillfactor = 50);

-- The topics that processes of a consumer group have asked for, as patterns. Each process of the group reads them all: what the
-- owner of a shard passes over is passed for the group.
create table outbox.group_topic (
    relay text not null references outbox.relay (name),
    pattern text not null check (octet_length(pattern) between 1 and 512),
    registered_at timestamptz not null default clock_timestamp(),
    primary key (relay, pattern)
);

-- A process of a relay that waits for its broker before it does anything: it owns nothing and takes no part, and its relay may
-- be new. For a person to see.
create table outbox.waiting_process (
    id uuid primary key,
    relay text not null,
    label text not null,
    reason text not null check (octet_length(reason) <= 4096),
    since timestamptz not null default clock_timestamp(),
    expires_at timestamptz not null,
    -- As of a process.
    lasts interval not null default '1 hour'
);

-- What a relay has delivered, per shard (a message's shard is its slot modulo the relay's shards): what is visible in
-- `seen`, and what is visible in `until` at a position up to `after`. No unseen transaction can have drawn a position at
-- or below `seen_l` (`until_l`) unless it was running when that snapshot was taken. `epoch` counts the owners: a record
-- that names an older one changes nothing. `crashes` counts owners that died since the cursor last moved: after two, what
-- is read next is held and tried one by one, since one of it may be what kills them.
create table outbox.cursor (
    relay text not null references outbox.relay (name),
    shard smallint not null check (shard >= 0),
    era integer not null references outbox.cluster (era),
    epoch bigint not null default 0,
    owner uuid,
    crashes integer not null default 0,
    seen pg_snapshot not null,
    seen_l bigint not null,
    until pg_snapshot,
    until_l bigint,
    after bigint not null default 0,
    recorded_at timestamptz not null default clock_timestamp(),
    primary key (relay, shard),
    constraint cursor_window check ((until is null) = (until_l is null))
) with (fillfactor = 10);

-- A key that a relay holds back, named by the position of the message that failed. A message without a key is held alone.
-- `reason`: its message failed; or is suspected of having ended the relay's process; or its destination is unavailable; or its
-- backlog takes too much of what the relay reads ahead. With a `destination` it waits for that, and not for a time.
create table outbox.held_key (
    relay text not null references outbox.relay (name),
    position bigint not null,
    slot smallint not null,
    key text,
    state text not null check (state in ('retrying', 'parked')),
    attempts integer not null check (attempts >= 0),
    next_attempt_at timestamptz,
    last_error text not null check (octet_length(last_error) <= 4096),
    held_at timestamptz not null default clock_timestamp(),
    reason text not null default 'failed' check (reason in ('failed', 'suspected', 'destination', 'backlog')),
    destination text,
    primary key (relay, position),
    constraint held_key_retry check ((state = 'retrying') = (next_attempt_at is not null)),
    constraint held_key_next_attempt_at check (
        next_attempt_at >= '1970-01-01 00:00:00+00' and next_attempt_at < '10000-01-01 00:00:00+00'
    ),
    constraint held_key_destination check (destination is null or (reason = 'destination' and state = 'retrying'))
)
-- Room for an attempt to be counted in the page, so that no index is written.
with (fillfactor = 50);
create unique index held_key_key on outbox.held_key (relay, key) where key is not null;
-- However many keys wait for a destination, what else is due is found without them, and they in their order. Only what asks
-- for the time may use the first: of a key that is named, the planner would read all that are retried.
create index held_key_due on outbox.held_key (relay, next_attempt_at)
    where next_attempt_at is not null and destination is null;
create index held_key_waiting on outbox.held_key (relay, destination, position) where destination is not null;

-- The messages of a held key, copied out of the log as the cursor meets them. What the log has, this table takes: also a
-- row that is no message, from before a constraint, is held, so that a person sees it.
create table outbox.held_message (
    relay text not null,
    position bigint not null,
    held bigint not null,
    id uuid,
    correlation uuid,
    causation uuid,
    occurred_at timestamptz,
    enqueued_at timestamptz,
    source text,
    topic text,
    kind text,
    key text,
    headers jsonb,
    payload bytea,
    -- Of the payload, for who may not read that.
    bytes integer not null default 0,
    -- The transaction that wrote it, by which a cursor has passed it or not; null: it has.
    tx xid8,
    primary key (relay, position),
    foreign key (relay, held) references outbox.held_key (relay, position)
);
create index held_message_held on outbox.held_message (relay, held, position);

-- Messages of held keys that a relay is done with, published or given up, though its cursor has not passed them: whoever
-- reads them again neither publishes nor holds them. `held` names the hold that they were of; their slot and transaction
-- say when a cursor has passed them. Then the shard's owner deletes them, with the record of that cursor.
create table outbox.settled_message (
    relay text not null references outbox.relay (name),
    position bigint not null,
    held bigint not null,
    slot smallint not null,
    tx xid8 not null,
    primary key (relay, position)
);
create index settled_message_held on outbox.settled_message (relay, held);

-- Messages that are not due yet, and nobody's to read until they are: then the upkeep moves them into the log, in the order
-- of `due_at`, and of `number` for the same moment. The limits are the log's.
create table outbox.scheduled_message (
    due_at timestamptz not null,
    number bigint not null generated always as identity,
    like outbox.message including constraints,
    primary key (due_at, number)
);
alter table outbox.scheduled_message
    drop column tx, drop column position, drop column slot, drop column enqueued_at,
    add constraint scheduled_message_due_at check (
        due_at >= '1970-01-01 00:00:00+00' and due_at < '10000-01-01 00:00:00+00'
    );
-- Whoever gives one up knows its id.
create index scheduled_message_id on outbox.scheduled_message (id);

-- A replay: messages of the log that are published once more, because a person asked for it. It publishes what its columns
-- ask for (null: anything) of what was committed when it began (`seen`), at positions above `after` and up to
-- `to_position`; up to `after` it is done. As long as it is running, at work or not, the log keeps what is left of it.
-- `epoch` counts the processes that worked at it: a record that names an older one changes nothing. `expires_at`: until
-- when the last of them is taken for alive.
create table outbox.replay (
    name text primary key check (name ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
    state text not null default 'running' check (state in ('running', 'finished', 'cancelled')),
    era integer not null references outbox.cluster (era),
    seen pg_snapshot not null,
    after bigint not null check (after >= 0),
    to_position bigint not null,
    published bigint not null default 0,
    skipped bigint not null default 0,
    last_error text,
    destination text,
    asked_from bigint,
    asked_to bigint,
    since timestamptz,
    until timestamptz,
    topics text[],
    kinds text[],
    keys text[],
    ids uuid[],
    correlations uuid[],
    epoch bigint not null default 0,
    expires_at timestamptz,
    -- As of a process.
    lasts interval not null default '1 hour',
    created_at timestamptz not null default clock_timestamp(),
    recorded_at timestamptz not null default clock_timestamp()
) with (fillfactor = 50);

-- What people, and relays in their name, have decided. Rows are added and never changed. `who` is what somebody said,
-- `role` what the server knows of them.
create table outbox.audit (
    id bigint primary key generated always as identity,
    at timestamptz not null default clock_timestamp(),
    who text not null check (octet_length(who) between 1 and 200),
    role text not null default session_user,
    action text not null check (
        action in ('redrive', 'skip', 'pause', 'resume', 'retire', 'replay', 'cancel', 'repair')
    ),
    relay text references outbox.relay (name),
    replay text references outbox.replay (name),
    position bigint,
    message_id uuid,
    reason text check (octet_length(reason) between 1 and 4096),
    -- What gives messages up says why.
    constraint audit_reason check (action not in ('skip', 'retire', 'cancel') or reason is not null)
);

-- Who looks after the log as a whole: one process of any relay at a time. It is a lease by this database's clock, so that
-- the work is not done twice for nothing; that nothing is lost or doubled rests on the statements of the work itself.
create table outbox.upkeep (
    holder uuid,
    expires_at timestamptz,
    -- As of a process.
    lasts interval not null default '1 hour',
    rests interval,
    one_row boolean primary key default true check (one_row),
    constraint upkeep_lease check ((holder is null) = (expires_at is null))
) with (fillfactor = 10);
insert into outbox.upkeep default values;

-- A UUIDv7 (RFC 9562) for those who cannot make one, or one that carries another moment than now.
create function outbox.uuid_v7(moment timestamptz default clock_timestamp()) returns uuid
language sql volatile parallel safe set search_path = pg_catalog
as $$
    select encode(
        set_byte(
            overlay(uuid_send(gen_random_uuid())
                placing substring(int8send(floor(extract(epoch from moment) * 1000)::bigint) from 3) from 1 for 6),
            6, 112 | (get_byte(uuid_send(gen_random_uuid()), 0) & 15)),
        'hex')::uuid
$$;

-- What is wrong with a message: the field and its limit, never the value; null if nothing is. Without a `set` of its own it
-- becomes part of the functions that call it, whose search path is set; with one, it costs twenty times as much.
create function outbox.message_fault(
    topic text, kind text, payload bytea, key text, headers jsonb, id uuid, source text, correlation uuid, causation uuid,
    occurred_at timestamptz
) returns text
language sql immutable parallel safe
as $$
    select case
        when topic is null or octet_length(topic) > 200
            or topic !~ '^[A-Za-z0-9_-]+([.][A-Za-z0-9_-]+)*$'
            then 'topic: words of A-Z a-z 0-9 _ - joined by dots, at most 200 bytes'
        when kind is null or kind !~ '^[!-~]{1,200}$'
            then 'kind: 1 to 200 printable ASCII characters without a space'
        when payload is null then 'payload: must not be null (it may be empty)'
        when octet_length(payload) > 983040 then 'payload: at most 983040 bytes'
        when octet_length(key) not between 1 and 512 then 'key: 1 to 512 bytes'
        when source !~ '^[!-~]{1,200}$'
            then 'source: 1 to 200 printable ASCII characters without a space'
        when id = '00000000-0000-0000-0000-000000000000' then 'id: must not be nil'
        when correlation = '00000000-0000-0000-0000-000000000000' then 'correlation: must not be nil'
        when causation = '00000000-0000-0000-0000-000000000000' then 'causation: must not be nil'
        when occurred_at < '1970-01-01 00:00:00+00' or occurred_at >= '10000-01-01 00:00:00+00'
            then 'occurred_at: between the years 1970 and 9999'
        when jsonb_typeof(headers) <> 'object' then 'headers: a JSON object of strings'
        when octet_length(headers::text) > 16384 then 'headers: at most 16384 bytes in all'
        when jsonb_path_exists(headers, '$.keyvalue() ? (
            !(@.key like_regex "^[a-z0-9][a-z0-9._-]{0,63}$") || @.key starts with "ce-" || @.key starts with "nats-"
            || @.key starts with "webhook-" || @.key starts with "outbox-")')
            then 'headers: a name has 1 to 64 of a-z 0-9 . _ - and no reserved prefix (ce- nats- webhook- outbox-)'
        when jsonb_path_exists(headers, E'$.keyvalue() ? (
            @.value.type() != "string" || @.value like_regex "[\\\\x01-\\\\x1f\\\\x7f]")')
            then 'headers: a value is a string without control characters'
    end
$$;

-- Writes one message in the caller's transaction and answers its id. The contract of the Rust function `outbox::enqueue`
-- for every other language: the same limits, checked before the insert, so that an error names the field and the limit
-- and never the value. SQLSTATE 22023 for each. `lock_key` serialises the writers of a key that do not already lock a
-- row of their own: the lock is taken before the position is drawn and kept until the transaction ends.
create function outbox.enqueue(
    topic text,
    kind text,
    payload bytea,
    key text default null,
    headers jsonb default null,
    id uuid default null,
    source text default null,
    correlation uuid default null,
    causation uuid default null,
    occurred_at timestamptz default null,
    lock_key boolean default false
) returns uuid
language plpgsql volatile set search_path = pg_catalog
as $$
declare
    message_id uuid := coalesce(enqueue.id, outbox.uuid_v7());
    fault text := outbox.message_fault(
        enqueue.topic, enqueue.kind, enqueue.payload, enqueue.key, enqueue.headers, message_id, enqueue.source,
        enqueue.correlation, enqueue.causation, enqueue.occurred_at);
begin
    if fault is not null then
        raise exception using errcode = 'invalid_parameter_value', message = 'outbox.enqueue: ' || fault;
    end if;
    if lock_key and enqueue.key is not null then
        perform pg_advisory_xact_lock(hashtextextended(enqueue.key collate "C", 0));
    end if;
    insert into outbox.message (id, correlation, causation, occurred_at, source, topic, kind, key, headers, payload)
    values (
        message_id, coalesce(enqueue.correlation, message_id), enqueue.causation, coalesce(enqueue.occurred_at, now()),
        coalesce(enqueue.source, (select origin.source from outbox.origin)),
        enqueue.topic, enqueue.kind, enqueue.key, enqueue.headers, enqueue.payload
    );
    return message_id;
end
$$;

-- Why a text is no payload of the content type that its headers declare (JSON unless they say otherwise); null if nothing is
-- wrong. It checks JSON and nothing else; an empty payload is none. Without a `set` of its own, like outbox.message_fault.
create function outbox.text_fault(payload text, headers jsonb) returns text
language plpgsql immutable
as $$
begin
    if payload <> '' and pg_catalog.lower(pg_catalog.split_part(
        coalesce(headers operator(pg_catalog.->>) 'content-type', 'application/json'), ';', 1)) ~ '[/+]json\s*$'
    then
        -- Validates and stores nothing. Its own error would quote the payload.
        perform payload::pg_catalog.json;
    end if;
    return null;
exception when invalid_text_representation or statement_too_complex then
    return 'payload: not JSON, as which it is declared; declare another content type (headers => ''{"content-type": "text/plain"}'') or give it as bytea';
end
$$;

-- The same for text, which it stores in UTF-8: what psql and triggers mean by a payload. (A literal given as bytea would
-- go through bytea's own escapes.) What is declared as JSON, as by default, must be JSON.
create function outbox.enqueue(
    topic text,
    kind text,
    payload text,
    key text default null,
    headers jsonb default null,
    id uuid default null,
    source text default null,
    correlation uuid default null,
    causation uuid default null,
    occurred_at timestamptz default null,
    lock_key boolean default false
) returns uuid
language plpgsql volatile set search_path = pg_catalog
as $$
declare
    fault text := outbox.text_fault(enqueue.payload, enqueue.headers);
begin
    if fault is not null then
        raise exception using errcode = 'invalid_parameter_value', message = 'outbox.enqueue: ' || fault;
    end if;
    return outbox.enqueue(
        enqueue.topic, enqueue.kind, convert_to(enqueue.payload, 'UTF8'), enqueue.key, enqueue.headers, enqueue.id,
        enqueue.source, enqueue.correlation, enqueue.causation, enqueue.occurred_at, enqueue.lock_key);
end
$$;

-- Schedules one message in the caller's transaction and answers its id: it enters the log when it is due, as if it were
-- enqueued then, and happens then. Its id carries that moment, too (or now, if it has passed), unless one is given. As
-- outbox.enqueue else.
create function outbox.enqueue_at(
    due_at timestamptz,
    topic text,
    kind text,
    payload bytea,
    key text default null,
    headers jsonb default null,
    id uuid default null,
    source text default null,
    correlation uuid default null,
    causation uuid default null
) returns uuid
language plpgsql volatile set search_path = pg_catalog
as $$
declare
    fault text := case
        when enqueue_at.due_at is null or enqueue_at.due_at < '1970-01-01 00:00:00+00'
            or enqueue_at.due_at >= '10000-01-01 00:00:00+00'
            then 'due_at: between the years 1970 and 9999'
    end;
    message_id uuid := enqueue_at.id;
begin
    if fault is null then
        message_id := coalesce(message_id, outbox.uuid_v7(greatest(enqueue_at.due_at, clock_timestamp())));
        fault := outbox.message_fault(
            enqueue_at.topic, enqueue_at.kind, enqueue_at.payload, enqueue_at.key, enqueue_at.headers, message_id,
            enqueue_at.source, enqueue_at.correlation, enqueue_at.causation, enqueue_at.due_at);
    end if;
    if fault is not null then
        raise exception using errcode = 'invalid_parameter_value', message = 'outbox.enqueue_at: ' || fault;
    end if;
    insert into outbox.scheduled_message (
        due_at, id, correlation, causation, occurred_at, source, topic, kind, key, headers, payload)
    values (
        enqueue_at.due_at, message_id, coalesce(enqueue_at.correlation, message_id), enqueue_at.causation,
        enqueue_at.due_at, coalesce(enqueue_at.source, (select origin.source from outbox.origin)),
        enqueue_at.topic, enqueue_at.kind, enqueue_at.key, enqueue_at.headers, enqueue_at.payload
    );
    return message_id;
end
$$;

-- The same for text.
create function outbox.enqueue_at(
    due_at timestamptz,
    topic text,
    kind text,
    payload text,
    key text default null,
    headers jsonb default null,
    id uuid default null,
    source text default null,
    correlation uuid default null,
    causation uuid default null
) returns uuid
language plpgsql volatile set search_path = pg_catalog
as $$
declare
    fault text := outbox.text_fault(enqueue_at.payload, enqueue_at.headers);
begin
    if fault is not null then
        raise exception using errcode = 'invalid_parameter_value', message = 'outbox.enqueue_at: ' || fault;
    end if;
    return outbox.enqueue_at(
        enqueue_at.due_at, enqueue_at.topic, enqueue_at.kind, convert_to(enqueue_at.payload, 'UTF8'), enqueue_at.key,
        enqueue_at.headers, enqueue_at.id, enqueue_at.source, enqueue_at.correlation, enqueue_at.causation);
end
$$;

-- Gives up a scheduled message in the caller's transaction. Whether it was still waiting; else it is in the log, or was
-- never scheduled.
-- With the rights of its owner: to delete rows is a right to delete all of them, and to lock the table.
create function outbox.cancel(id uuid) returns boolean
language sql volatile security definer set search_path = pg_catalog, pg_temp
as $$
    -- In SQL, so planned at each call: a plan kept from when nothing was scheduled would look through them all.
    with given_up as (delete from outbox.scheduled_message m where m.id = cancel.id returning true)
    select exists (select from given_up)
$$;
revoke all on function outbox.cancel from public;
