-- The workflow of the first order that ended so: the id of the message that began it.
-- $1 how it ended
select history.message_id
from orders.orders
join orders.history on history.order_id = orders.id and history.kind = 'order.placed'
where coalesce(orders.reason, orders.state) = $1
order by orders.placed_at, orders.id
limit 1
