-- Locks an order's reservation and the articles it holds, these in the order of their codes; answers its state.
-- $1 order
with reservation as materialized (
    select reservation.order_id, reservation.state
    from stock.reservation
    where reservation.order_id = $1
    for update
),
articles as materialized (
    select article.code
    from stock.article
    join stock.reservation_line as line on line.article = article.code
    join reservation on reservation.order_id = line.order_id
    order by article.code
    for update of article
)
select reservation.state, (select count(*) from articles) as articles
from reservation
