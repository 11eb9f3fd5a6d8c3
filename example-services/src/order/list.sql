-- The newest orders, of one state if given.
-- $1 state or null, $2 how many at most
select
    orders.id,
    orders.customer,
    orders.destination,
    orders.state,
    orders.reason,
    orders.amount_cents,
    orders.placed_at
from orders.orders
where $1::text is null or orders.state = $1
order by orders.placed_at desc, orders.id desc
limit $2
