-- Places an order, unless one with its idempotency key is there: then no row is inserted.
-- $1 id, $2 idempotency key, $3 request, $4 customer, $5 destination
insert into orders.orders (id, idempotency_key, request, customer, destination)
values ($1, $2, $3, $4, $5)
on conflict (idempotency_key) do nothing
