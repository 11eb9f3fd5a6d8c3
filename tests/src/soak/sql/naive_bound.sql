-- The last position drawn.
select case when s.is_called then s.last_value else 0 end from outbox.message_position_seq s
