-- Writes down a repair, and who decided it. $1 who, $2 the first position of the new era, $3 why or null.
insert into outbox.audit (who, action, position, reason) values ($1, 'repair', $2, $3)
