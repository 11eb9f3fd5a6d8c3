-- What a soak of several processes writes down beside the business.
--
-- Who has acquired which shard from whom, as it happens: a sample every so often would miss some of it.
create table soak.acquisition (
    shard smallint not null,
    epoch bigint not null,
    previous uuid,
    owner uuid not null,
    -- Of the owner.
    label text,
    at timestamptz not null default clock_timestamp()
);
create function soak.note_acquisition() returns trigger language plpgsql as $$
begin
    insert into soak.acquisition (shard, epoch, previous, owner, label)
    values (new.shard, new.epoch, old.owner, new.owner, (select p.label from outbox.process p where p.id = new.owner));
    return null;
end
$$;
create trigger note_acquisition after update on outbox.cursor
    for each row when (old.epoch <> new.epoch) execute function soak.note_acquisition();
-- Where the naive relay of several processes stands in each of its shards. `done` counts the messages of the open window
-- that are published.
create table soak.shard (
    shard smallint primary key,
    seen pg_snapshot not null default '1:1:',
    bound bigint not null default 0,
    until pg_snapshot,
    until_bound bigint,
    done bigint not null default 0,
    epoch bigint not null default 0,
    owner uuid,
    expires_at timestamptz
);
insert into soak.shard (shard) select generate_series(0, 3);
