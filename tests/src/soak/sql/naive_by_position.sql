-- Planted: what is new has a higher position. $1 the last one read.
select tx::text as tx, position, id, key, payload from outbox.message where position > $1 order by position
