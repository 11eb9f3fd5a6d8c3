-- Writes down that an order cannot be shipped. Its row is the lock for what is enqueued for the order.
-- $1 order, $2 destination, $3 reason
insert into shipping.shipment (order_id, destination, state, reason) values ($1, $2, 'refused', $3)
