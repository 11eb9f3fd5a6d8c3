-- The shipping service's tables, with a shop's destinations. Run at every start: what is there stays as it is.
create schema if not exists shipping;

create table if not exists shipping.destination (
    code text primary key check (code ~ '^[a-zA-Z0-9-]{1,40}$'),
    name text not null,
    -- Who carries goods there; null: nobody does.
    carrier text
);

create sequence if not exists shipping.tracking start 100001;

create table if not exists shipping.shipment (
    order_id uuid primary key,
    destination text not null,
    state text not null check (state in ('dispatched', 'refused')),
    tracking bigint unique,
    reason text,
    decided_at timestamptz not null default now(),
    constraint shipment_dispatched check ((state = 'dispatched') = (tracking is not null)),
    constraint shipment_refused check ((state = 'refused') = (reason is not null))
);

insert into shipping.destination (code, name, carrier)
values
    ('DE', 'Germany', 'parcel'), ('FR', 'France', 'parcel'), ('IT', 'Italy', 'parcel'), ('PL', 'Poland', 'freight'),
    ('SE', 'Sweden', 'freight'), ('AQ', 'Antarctica', null)
on conflict (code) do nothing;
