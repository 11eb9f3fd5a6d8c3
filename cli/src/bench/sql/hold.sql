-- Any statement: the first of a repeatable read transaction takes its snapshot.
select count(*) from outbox.cursor
