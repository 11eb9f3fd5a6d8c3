-- Removes some rows of undated ids that were handled before the floor. {slot}: the partition's number.
-- $1 floor, $2 how many
delete from inbox.message_{slot}
where (message_id, consumer) in (
    select message_id, consumer from inbox.message_{slot} where handled_at < $1::timestamptz limit $2::bigint
)
