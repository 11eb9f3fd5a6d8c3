-- A business transaction's own statement where rows must not grow old. $1 account.
insert into entry (account, amount) values ($1, 1)
