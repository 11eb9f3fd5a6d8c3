-- Ends a reservation that is held: its pieces are for sale again.
-- $1 order
with reservation as (
    update stock.reservation set state = 'released' where order_id = $1 and state = 'held' returning order_id
)
update stock.article
set reserved = article.reserved - line.quantity
from stock.reservation_line as line
join reservation on reservation.order_id = line.order_id
where article.code = line.article
