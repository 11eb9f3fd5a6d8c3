-- Locks an order, so that whoever enqueues for it next waits; answers its state.
-- $1 order
select orders.state
from orders.orders
where orders.id = $1
for update
