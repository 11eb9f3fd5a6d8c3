-- Locks articles, always in the order of their codes, so that two orders cannot deadlock; answers what is for sale.
-- $1 codes
select article.code, article.price_cents, article.on_hand - article.reserved as free
from stock.article
where article.code = any($1)
order by article.code
for update
