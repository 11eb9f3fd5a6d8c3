-- Of the completed orders: how many, what they cost, and their pieces. And how many are cancelled.
select
    count(*) filter (where orders.state = 'completed'),
    coalesce(sum(orders.amount_cents) filter (where orders.state = 'completed'), 0)::bigint,
    (
        select coalesce(sum(line.quantity), 0)::bigint
        from orders.line
        join orders.orders as completed on completed.id = line.order_id
        where completed.state = 'completed'
    ),
    count(*) filter (where orders.state = 'cancelled')
from orders.orders
