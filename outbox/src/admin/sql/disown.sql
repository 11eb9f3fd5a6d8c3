-- Shuts out every process that ever was: none owns a shard, and none may record in its old epoch.
with gone as (
    delete from outbox.process
)
update outbox.cursor set owner = null, epoch = epoch + 1
