-- Removes the rows of undated ids that were handled before the floor from some pages of a partition: each page is read once,
-- however many batches there are. {slot}: the partition's number.
-- $1 floor, $2 the first of the pages, $3 the page after them
delete from inbox.message_{slot}
where ctid >= ('(' || $2::bigint::text || ',0)')::tid and ctid < ('(' || $3::bigint::text || ',0)')::tid
    and handled_at < $1::timestamptz
