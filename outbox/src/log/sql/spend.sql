-- Spends a transaction id, in the transaction of `last_position.sql`, which then commits. Every snapshot taken afterwards
-- has its xmax above that id, and a transaction from that xmax on got its own id after this one, hence drew its positions
-- after `last_position.sql` ran. That makes the position read there a lower bound for what is new. A snapshot's xmax alone
-- does not: it is one above the latest *finished* transaction, and later ones may already be running.
select pg_current_xact_id()::text
