-- Adds to an order's history.
-- $1 order, $2 message id, $3 kind
insert into orders.history (order_id, message_id, kind) values ($1, $2, $3)
