-- How many shipments are dispatched and refused.
select
    count(*) filter (where shipment.state = 'dispatched'),
    count(*) filter (where shipment.state = 'refused')
from shipping.shipment
