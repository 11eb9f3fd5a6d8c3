-- The last position drawn, read before `spend.sql`. A sequence never used says 1 and is_called = false.
select case when s.is_called then s.last_value else 0 end from outbox.message_position_seq s
