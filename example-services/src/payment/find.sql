-- One order's payment.
-- $1 order
select
    payment.order_id,
    payment.customer,
    payment.amount_cents,
    payment.state,
    payment.reason,
    payment.decided_at
from payments.payment
where payment.order_id = $1
