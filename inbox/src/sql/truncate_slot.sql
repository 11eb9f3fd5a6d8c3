-- Empties a day's partition. {slot}: its number.
truncate table inbox.message_{slot}
