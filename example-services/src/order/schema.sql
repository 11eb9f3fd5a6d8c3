-- The order service's tables. Run at every start: what is there stays as it is.
create schema if not exists orders;

create table if not exists orders.orders (
    id uuid primary key,
    idempotency_key text not null unique check (octet_length(idempotency_key) between 1 and 100),
    -- What was asked for, so that the same key with another order is told from a repeat.
    request jsonb not null,
    customer text not null,
    destination text not null,
    state text not null default 'placed' check (state in ('placed', 'reserved', 'paid', 'completed', 'cancelled')),
    reason text,
    -- Known once stock.reserved has arrived, which may be after the news of a later step.
    amount_cents bigint check (amount_cents > 0),
    placed_at timestamptz not null default now(),
    constraint orders_reason check ((state = 'cancelled') = (reason is not null))
);
create index if not exists orders_placed_at on orders.orders (placed_at, id);

create table if not exists orders.line (
    order_id uuid not null references orders.orders (id),
    number integer not null check (number > 0),
    article text not null,
    quantity integer not null check (quantity > 0),
    primary key (order_id, number)
);

-- What happened to an order, in the order in which this service learned of it.
create table if not exists orders.history (
    order_id uuid not null references orders.orders (id),
    number bigint not null generated always as identity,
    message_id uuid not null,
    kind text not null,
    learned_at timestamptz not null default clock_timestamp(),
    primary key (order_id, number),
    unique (order_id, message_id)
);
