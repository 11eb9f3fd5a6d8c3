-- How many shipments are decided.
select count(*) from shipping.shipment
