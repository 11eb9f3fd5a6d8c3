-- Writes down a decision about a held key, with the first of its messages.
-- $1 consumer, $2 hold, $3 action, $4 who, $5 why (or null)
insert into inbox.audit (who, action, consumer, hold, message_id, reason)
select $4::text, $3::text, $1::text, $2::bigint,
    (
        select message_id
        from inbox.held_message
        where consumer = $1::text and hold = $2::bigint
        order by arrival
        limit 1
    ),
    $5::text
