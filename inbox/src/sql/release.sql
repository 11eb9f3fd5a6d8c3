-- The key is held no longer, if none of its messages waits. After `release_lock`, in its transaction.
-- $1 consumer, $2 hold
delete from inbox.held_key
where consumer = $1::text and hold = $2::bigint
    and not exists (select from inbox.held_message where consumer = $1::text and hold = $2::bigint)
