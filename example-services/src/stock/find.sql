-- An order's reservation, with its lines as JSON.
-- $1 order
select
    reservation.order_id,
    reservation.state,
    reservation.reason,
    (
        select pg_catalog.jsonb_agg(
            pg_catalog.jsonb_build_object('article', line.article, 'quantity', line.quantity, 'price_cents', line.price_cents)
            order by line.article)
        from stock.reservation_line as line
        where line.order_id = reservation.order_id
    ) as lines
from stock.reservation
where reservation.order_id = $1
