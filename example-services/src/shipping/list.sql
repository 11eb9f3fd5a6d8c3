-- The newest shipments, of one state if given.
-- $1 state or null, $2 how many at most
select
    shipment.order_id,
    shipment.destination,
    shipment.state,
    shipment.tracking,
    shipment.reason,
    shipment.decided_at
from shipping.shipment
where $1::text is null or shipment.state = $1
order by shipment.decided_at desc, shipment.order_id desc
limit $2
