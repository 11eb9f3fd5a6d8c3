-- The payment service's tables, with a shop's customers. Run at every start: what is there stays as it is.
create schema if not exists payments;

-- Customers buy on account. What they owe is the sum of their ledger.
create table if not exists payments.account (
    customer text primary key check (customer ~ '^[a-zA-Z0-9-]{1,40}$'),
    -- Most that one order may cost.
    limit_cents bigint not null check (limit_cents >= 0),
    balance_cents bigint not null default 0 check (balance_cents >= 0)
);

create table if not exists payments.payment (
    order_id uuid primary key,
    customer text not null,
    amount_cents bigint not null check (amount_cents > 0),
    state text not null check (state in ('taken', 'refused', 'refunded')),
    reason text,
    decided_at timestamptz not null default now(),
    constraint payment_reason check ((state = 'refused') = (reason is not null))
);

-- Entries are added and never changed: a refund is an entry of its own. At most one of each kind an order.
create table if not exists payments.ledger (
    number bigint primary key generated always as identity,
    customer text not null references payments.account (customer),
    order_id uuid not null references payments.payment (order_id),
    kind text not null check (kind in ('charge', 'refund')),
    amount_cents bigint not null,
    entered_at timestamptz not null default clock_timestamp(),
    unique (order_id, kind),
    constraint ledger_sign check ((kind = 'charge') = (amount_cents > 0) and amount_cents <> 0)
);
create index if not exists ledger_customer on payments.ledger (customer, number);

create or replace function payments.refuse_change() returns trigger
language plpgsql
as $$
begin
    raise exception using errcode = 'restrict_violation', message = 'payments.ledger is append-only';
end
$$;
create or replace trigger ledger_append_only
    before update or delete or truncate on payments.ledger
    for each statement execute function payments.refuse_change();

insert into payments.account (customer, limit_cents)
values
    ('ada', 200000), ('bert', 200000), ('clara', 200000), ('dora', 200000), ('emil', 200000),
    ('frida', 200000), ('gus', 200000), ('student', 20000)
on conflict (customer) do nothing;
