-- Pieces that came in, are in the house and are set aside; how many reservations are held, released and shipped.
select
    (select coalesce(sum(intake.quantity), 0)::bigint from stock.intake),
    (select coalesce(sum(article.on_hand), 0)::bigint from stock.article),
    (select coalesce(sum(article.reserved), 0)::bigint from stock.article),
    (
        select coalesce(sum(line.quantity), 0)::bigint
        from stock.reservation_line as line
        join stock.reservation on reservation.order_id = line.order_id
        where reservation.state = 'held'
    ),
    count(*) filter (where reservation.state = 'released'),
    count(*) filter (where reservation.state = 'shipped')
from stock.reservation
