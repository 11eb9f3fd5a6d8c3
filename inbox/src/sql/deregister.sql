-- A process of a consumer leaves it in good order.
-- $1 process
delete from inbox.process where id = $1::uuid
