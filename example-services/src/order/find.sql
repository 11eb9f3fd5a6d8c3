-- One order, with its lines and history as JSON.
-- $1 order
select
    orders.id,
    orders.customer,
    orders.destination,
    orders.state,
    orders.reason,
    orders.amount_cents,
    orders.placed_at,
    (
        select pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('article', line.article, 'quantity', line.quantity) order by line.number)
        from orders.line
        where line.order_id = orders.id
    ) as lines,
    (
        select pg_catalog.jsonb_agg(
            pg_catalog.jsonb_build_object(
                'kind', history.kind, 'message', history.message_id, 'learned_at', history.learned_at
            ) order by history.number)
        from orders.history
        where history.order_id = orders.id
    ) as history
from orders.orders
where orders.id = $1
