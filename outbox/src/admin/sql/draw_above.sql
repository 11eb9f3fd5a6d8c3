-- Positions are drawn above $1 from now on. Stays even if the transaction does not.
select setval('outbox.message_position_seq', $1)
