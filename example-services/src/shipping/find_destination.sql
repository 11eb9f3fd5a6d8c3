-- Who carries goods to a destination.
-- $1 code
select destination.carrier
from shipping.destination
where destination.code = $1
