-- The business transaction's own statement. $1 account.
update account set balance = balance + 1 where id = $1
