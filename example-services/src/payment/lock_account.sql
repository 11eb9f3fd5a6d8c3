-- Locks a customer's account; answers the most that one order may cost.
-- $1 customer
select account.limit_cents
from payments.account
where account.customer = $1
for update
