-- Whether a partition has any row. {slot}: its number.
select exists (select from inbox.message_{slot}) as in_use
