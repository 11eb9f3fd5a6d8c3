-- In front of the lock on a leaf: nobody shall queue up behind us for long, neither while we wait for it nor while we have
-- it, be it because we stand still. Until the transaction ends.
select set_config('lock_timeout', '50ms', true), set_config('statement_timeout', '1s', true),
    set_config('idle_in_transaction_session_timeout', '1s', true)
