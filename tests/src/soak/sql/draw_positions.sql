-- The planted writers: positions drawn before the transaction has an id. $1 how many.
select nextval('outbox.message_position_seq') from generate_series(1, $1)
