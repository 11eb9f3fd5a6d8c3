-- Moves an order on. Reason and amount stay unless given.
-- $1 order, $2 state, $3 reason or null, $4 amount or null
update orders.orders
set state = $2, reason = coalesce($3, reason), amount_cents = coalesce($4, amount_cents)
where id = $1
