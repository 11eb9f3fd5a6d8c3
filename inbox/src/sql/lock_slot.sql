-- Keeps others away from a partition, so that what is newest in it is known. {slot}: its number.
lock table inbox.message_{slot} in access exclusive mode
