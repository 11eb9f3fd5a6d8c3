-- Every article, with what is in the house, what is set aside and what is for sale.
select
    article.code,
    article.name,
    article.price_cents,
    article.on_hand,
    article.reserved,
    article.on_hand - article.reserved as free
from stock.article
order by article.code
