-- The business of the soak, beside the outbox: `biz` is the truth of what committed, and refuses a version twice.
create schema soak;
-- Keys whose writers lock the aggregate's row.
create table soak.aggregate (key integer primary key, version bigint not null default 0);
-- Keys whose writers lock the key: guarded by that lock, read before it is written.
create table soak.counter (key integer primary key, version bigint not null default 0);
create table soak.biz (id uuid primary key, key integer not null, version bigint not null, unique (key, version));
-- Where a naive relay stands.
create table soak.cursor (
    seen pg_snapshot not null default '1:1:',
    bound bigint not null default 0,
    tx xid8 not null default '0',
    position bigint not null default 0
);
insert into soak.cursor default values;
insert into soak.aggregate (key) select generate_series(0, 49);
insert into soak.counter (key) select generate_series(0, 49);
