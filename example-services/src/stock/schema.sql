-- The stock service's tables, with a shop's goods. Run at every start: what is there stays as it is.
create schema if not exists stock;

create table if not exists stock.article (
    code text primary key check (code ~ '^[a-zA-Z0-9-]{1,40}$'),
    name text not null,
    price_cents bigint not null check (price_cents > 0),
    -- Pieces in the house, and how many of them are set aside for orders.
    on_hand integer not null default 0 check (on_hand >= 0),
    reserved integer not null default 0,
    constraint article_reserved check (reserved between 0 and on_hand)
);

-- What came into the house. What left it stands in the reservations that are shipped.
create table if not exists stock.intake (
    article text not null references stock.article (code),
    number integer not null check (number > 0),
    quantity integer not null check (quantity > 0),
    primary key (article, number)
);

create table if not exists stock.reservation (
    order_id uuid primary key,
    state text not null check (state in ('held', 'missing', 'released', 'shipped')),
    reason text,
    made_at timestamptz not null default now(),
    constraint reservation_reason check ((state = 'missing') = (reason is not null))
);

create table if not exists stock.reservation_line (
    order_id uuid not null references stock.reservation (order_id),
    article text not null references stock.article (code),
    quantity integer not null check (quantity > 0),
    price_cents bigint not null check (price_cents > 0),
    primary key (order_id, article)
);

-- The first delivery: its rows and the pieces on hand are written together, once.
with goods (code, name, price_cents, quantity) as (
    values
        ('lamp', 'Desk lamp', 4900, 1000000),
        ('chair', 'Office chair', 18900, 1000000),
        ('desk', 'Standing desk', 64900, 1000000),
        ('shelf', 'Book shelf', 12900, 1000000),
        ('mug', 'Coffee mug', 1200, 1000000),
        ('plant', 'Potted plant', 2400, 1000000),
        ('sofa', 'Sofa', 149900, 1000000),
        ('last-clock', 'Wall clock, the last two', 7900, 2)
),
article as (
    insert into stock.article (code, name, price_cents, on_hand)
    select goods.code, goods.name, goods.price_cents, goods.quantity from goods
    on conflict (code) do nothing
    returning code, on_hand
)
insert into stock.intake (article, number, quantity)
select article.code, 1, article.on_hand from article;
