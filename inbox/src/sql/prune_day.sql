-- Removes some rows of a day's partition that also holds a message from the future, which keeps it from being truncated.
-- Returns how many, and the newest of them. {slot}: the partition's number.
-- $1 the lowest id that is made at the floor, $2 how many
with removed as (
    delete from inbox.message_{slot}
    where (message_id, consumer) in (
        select message_id, consumer from inbox.message_{slot}
        where message_id < $1::uuid
        order by message_id
        limit $2::bigint
    )
    returning message_id
)
select (select count(*) from removed) as removed, (select message_id from removed order by message_id desc limit 1) as newest
