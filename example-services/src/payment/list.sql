-- The newest payments, of one customer if given.
-- $1 customer or null, $2 how many at most
select
    payment.order_id,
    payment.customer,
    payment.amount_cents,
    payment.state,
    payment.reason,
    payment.decided_at
from payments.payment
where $1::text is null or payment.customer = $1
order by payment.decided_at desc, payment.order_id desc
limit $2
