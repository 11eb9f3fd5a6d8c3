-- How each order ended: the reason of a cancelled one, the state of any other.
select orders.idempotency_key, coalesce(orders.reason, orders.state)
from orders.orders
