-- The last position drawn, read before `spend.sql`; 0 if none was. By this function, which locks the sequence's page: read
-- as a table, the sequence can show a value up to 32 ahead, which `nextval` puts there for its WAL record.
select coalesce(pg_catalog.pg_sequence_last_value('outbox.message_position_seq'::regclass), 0)
