-- Writes an order's lines, numbered as given.
-- $1 order, $2 articles, $3 quantities
insert into orders.line (order_id, number, article, quantity)
select $1, line.number, line.article, line.quantity
from unnest($2::text[], $3::integer[]) with ordinality as line (article, quantity, number)
