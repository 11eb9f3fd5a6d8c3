-- One order's shipment.
-- $1 order
select
    shipment.order_id,
    shipment.destination,
    shipment.state,
    shipment.tracking,
    shipment.reason,
    shipment.decided_at
from shipping.shipment
where shipment.order_id = $1
