-- Sets pieces aside, for an order that holds them.
-- $1 order, $2 articles, $3 quantities, $4 prices
with line as (
    insert into stock.reservation_line (order_id, article, quantity, price_cents)
    select $1, line.article, line.quantity, line.price_cents
    from unnest($2::text[], $3::integer[], $4::bigint[]) as line (article, quantity, price_cents)
    returning article, quantity
)
update stock.article
set reserved = article.reserved + line.quantity
from line
where article.code = line.article
