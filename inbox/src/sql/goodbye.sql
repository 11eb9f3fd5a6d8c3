-- A process of a consumer ends in good order.
-- $1 process
delete from inbox.process where id = $1::uuid
