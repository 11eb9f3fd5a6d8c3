-- Opens an order's reservation. Its row is the lock for everything that is enqueued for the order from now on.
-- $1 order, $2 state held or missing, $3 reason or null
insert into stock.reservation (order_id, state, reason) values ($1, $2, $3)
