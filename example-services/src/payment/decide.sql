-- Writes down how an order's payment was decided. Its row is the lock for everything enqueued for the order from now on.
-- $1 order, $2 customer, $3 amount, $4 state taken or refused, $5 reason or null
insert into payments.payment (order_id, customer, amount_cents, state, reason) values ($1, $2, $3, $4, $5)
