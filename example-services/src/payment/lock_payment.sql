-- Locks an order's payment; answers who paid how much, and its state.
-- $1 order
select payment.customer, payment.amount_cents, payment.state
from payments.payment
where payment.order_id = $1
for update
