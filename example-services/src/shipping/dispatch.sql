-- Writes down a shipment and answers its tracking number. Its row is the lock for what is enqueued for the order.
-- $1 order, $2 destination
insert into shipping.shipment (order_id, destination, state, tracking)
values ($1, $2, 'dispatched', pg_catalog.nextval('shipping.tracking'::regclass))
returning tracking
