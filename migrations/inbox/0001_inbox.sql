-- What each consumer has handled, and what it holds back.
--
-- For one transaction: until it ends, names are found in `pg_catalog` alone, so that no object which others have put into a
-- schema of the path is called here, or becomes a part of what is made.
set local search_path = pg_catalog, pg_temp;
set local default_table_access_method = heap;

-- Bookkeeping first: which schema this is, and the oldest build it still serves (docs/operations.md).
create table inbox.schema_version (
    version integer primary key,
    serves integer not null check (serves between 1 and version),
    applied_at timestamptz not null default now()
);
insert into inbox.schema_version (version, serves) values (1, 1);

-- The partition of a message id. A UUIDv7's is its day modulo 32: time stands in the key, so that (message, consumer)
-- is unique across partitions and a day is removed by one truncate. Any other id's is one of four that are emptied row
-- by row.
create function inbox.slot(message_id uuid) returns smallint
language sql immutable strict parallel safe
return case
    when get_byte(uuid_send(message_id), 6) >> 4 = 7 and get_byte(uuid_send(message_id), 8) >> 6 = 2 then
        (('x' || encode(substring(uuid_send(message_id) from 1 for 6), 'hex'))::bit(48)::bigint / 86400000) & 31
    else 32 + (uuid_hash_extended(message_id, 0) & 3)
end::smallint;

-- What a source is compared by. It is not negative.
create function inbox.source_hash(source text) returns integer
language sql immutable strict parallel safe
return (pg_catalog.hashtextextended(source collate "C", 0) & 2147483647)::integer;

-- One row a consumer and message whose effect is committed. `attempts` counts the tries it took. Another event that comes
-- with the same id from another source is not taken for a copy: `source_hash` tells the two apart; null: the source is
-- not known, and any copy is one.
create table inbox.message (
    message_id uuid not null,
    received_at timestamptz not null default clock_timestamp(),
    handled_at timestamptz not null default clock_timestamp(),
    attempts integer not null default 1 check (attempts > 0),
    source_hash integer,
    slot smallint not null,
    consumer text not null check (octet_length(consumer) between 1 and 100),
    primary key (message_id, consumer, slot),
    constraint message_slot check (slot = inbox.slot(message_id))
) partition by list (slot);

do $$
begin
    for slot in 0..35 loop
        execute format('create table inbox.message_%s partition of inbox.message for values in (%s)', slot, slot);
    end loop;
end
$$;

-- Who consumes here, and how old a copy each of them takes. Rows of `inbox.message` are kept for the longest horizon.
create table inbox.consumer (
    name text primary key check (octet_length(name) between 1 and 100),
    horizon interval not null,
    started_at timestamptz not null default clock_timestamp(),
    -- When one of its processes was last found dead.
    died_at timestamptz
);

-- The kinds that processes of a consumer handle. What any of them has registered is held for it by the others; only what
-- none has registered is acknowledged unhandled. `last_seen_at` is renewed while a process runs that handles the kind.
create table inbox.consumer_kind (
    consumer text not null references inbox.consumer (name),
    kind text not null,
    registered_at timestamptz not null default clock_timestamp(),
    last_seen_at timestamptz not null default clock_timestamp(),
    primary key (consumer, kind)
) with (fillfactor = 50);

-- A running process of a consumer. One whose row expires has died. For a while after a death each process declares which
-- messages it is about to try for the first time (`in_hand`), so that the next death names the messages that may have
-- caused it.
create table inbox.process (
    id uuid primary key,
    consumer text not null references inbox.consumer (name),
    started_at timestamptz not null default clock_timestamp(),
    expires_at timestamptz not null,
    in_hand uuid[] not null default '{}'
) with (fillfactor = 50);

-- Messages suspected of killing their process, since they were in hand when one died. Each is held and tried while its
-- process tries nothing else; a try that ends, whatever its result, takes it out.
create table inbox.quarantine (
    consumer text not null check (octet_length(consumer) between 1 and 100),
    message_id uuid not null,
    quarantined_at timestamptz not null default clock_timestamp(),
    primary key (consumer, message_id)
);

-- Rows of messages made before `floor` may be gone, so no message made before it is admitted. It rises before the rows go:
-- a horizon that is made longer later cannot let a copy through whose row was pruned under the shorter one. Only a repair
-- lowers it, and never below the end of a day in `emptied_day`.
create table inbox.retention (
    floor timestamptz not null,
    one_row boolean primary key default true check (one_row)
);
insert into inbox.retention (floor) values ('1970-01-01 00:00:00+00');

-- The newest day (UTC) of whose rows any was removed from a partition, written in the transaction that removed them.
create table inbox.emptied_day (
    slot smallint primary key check (slot between 0 and 31),
    day date not null
);

-- A key that a consumer holds back. A message without a key is held alone. `attempts` counts the tries of its first
-- message, each written before it begins. `tried_by` is the process that tries it now, or that died while it did.
create table inbox.held_key (
    consumer text not null check (octet_length(consumer) between 1 and 100),
    hold bigint not null generated always as identity,
    key text,
    state text not null check (state in ('retrying', 'parked')),
    attempts integer not null check (attempts >= 0),
    next_attempt_at timestamptz,
    last_error text not null check (octet_length(last_error) <= 4096),
    held_at timestamptz not null default clock_timestamp(),
    tried_by uuid,
    primary key (consumer, hold),
    constraint held_key_retry check ((state = 'retrying') = (next_attempt_at is not null))
);
create unique index held_key_key on inbox.held_key (consumer, key) where key is not null;
-- Only what asks for the time may use it: of a key that is named, the planner would read all that are retried.
create index held_key_due on inbox.held_key (consumer, next_attempt_at) where next_attempt_at is not null;

-- The messages of a held key, in the order in which they arrived, once each; with one id there may be one of each source
-- (a message without a source is a copy of any). What could not be understood is kept as it came: `topic` says where from,
-- `payload` holds the bytes that arrived, `message_id` and the others are null. A message that these columns do not take
-- keeps its `message_id`; `payload` holds it as JSON, and the others are null.
-- `late`: a person lets it be admitted although it is past the horizon.
create table inbox.held_message (
    consumer text not null,
    hold bigint not null,
    arrival bigint not null generated always as identity,
    received_at timestamptz not null default clock_timestamp(),
    message_id uuid,
    correlation uuid,
    causation uuid,
    occurred_at timestamptz,
    source text,
    topic text,
    kind text,
    key text,
    headers jsonb,
    payload bytea not null,
    late boolean not null default false,
    primary key (consumer, arrival),
    foreign key (consumer, hold) references inbox.held_key (consumer, hold)
);
create index held_message_hold on inbox.held_message (consumer, hold, arrival);
create unique index held_message_once on inbox.held_message (
    consumer, message_id, (coalesce(inbox.source_hash(source), -1))) where message_id is not null;

-- What people have decided about held messages. Rows are added and never changed. `who` is what somebody said, `role`
-- what the server knows of them. A message that could not be understood has no id.
create table inbox.audit (
    id bigint primary key generated always as identity,
    at timestamptz not null default clock_timestamp(),
    who text not null check (octet_length(who) between 1 and 200),
    role text not null default session_user,
    action text not null check (action in ('redrive', 'admit_late', 'skip', 'forget_kind')),
    consumer text not null check (octet_length(consumer) between 1 and 100),
    hold bigint,
    message_id uuid,
    kind text,
    reason text check (octet_length(reason) between 1 and 4096),
    constraint audit_reason check (action not in ('skip', 'forget_kind') or reason is not null),
    constraint audit_hold check (hold is not null or action = 'forget_kind'),
    constraint audit_kind check ((action = 'forget_kind') = (kind is not null))
);
