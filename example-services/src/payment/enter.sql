-- Enters an amount into the ledger and the account's balance, together: so the balance is the ledger's sum.
-- $1 customer, $2 order, $3 kind charge or refund, $4 amount: positive for a charge, negative for a refund
with entry as (
    insert into payments.ledger (customer, order_id, kind, amount_cents)
    values ($1, $2, $3, $4)
    returning customer, amount_cents
)
update payments.account
set balance_cents = account.balance_cents + entry.amount_cents
from entry
where account.customer = entry.customer
