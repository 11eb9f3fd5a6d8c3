-- Marks a payment as refunded.
-- $1 order
update payments.payment set state = 'refunded' where order_id = $1
