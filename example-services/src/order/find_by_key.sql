-- The order with that idempotency key, and whether it asks for the same.
-- $1 idempotency key, $2 request
select orders.id, orders.request = $2 as same
from orders.orders
where orders.idempotency_key = $1
