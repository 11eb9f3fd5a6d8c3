-- The last position drawn. Read as a table, the sequence can show a value that is not drawn yet.
select coalesce(pg_sequence_last_value('outbox.message_position_seq'::regclass), 0)
