-- How many orders stock has answered, and for how many of them everything was there.
select count(*), count(*) filter (where reservation.state <> 'missing')
from stock.reservation
