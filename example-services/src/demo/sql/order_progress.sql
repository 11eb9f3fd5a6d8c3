-- How many orders there are, and how many ended in each way.
select
    count(*),
    count(*) filter (where orders.state = 'completed'),
    count(*) filter (where orders.state = 'cancelled')
from orders.orders
