-- Cents in the ledger and in the balances; how many payments are refused and refunded.
select
    (select coalesce(sum(ledger.amount_cents), 0)::bigint from payments.ledger),
    (select coalesce(sum(account.balance_cents), 0)::bigint from payments.account),
    count(*) filter (where payment.state = 'refused'),
    count(*) filter (where payment.state = 'refunded')
from payments.payment
