-- Forgets settled messages that the cursors recorded in this transaction have passed. $1 relay, $2 their positions.
delete from outbox.settled_message s where s.relay = $1 and s.position = any ($2)
