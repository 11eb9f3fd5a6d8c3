-- Every account: what an order may cost, and what the customer owes.
select account.customer, account.limit_cents, account.balance_cents
from payments.account
order by account.customer
