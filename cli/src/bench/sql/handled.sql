-- How many messages were handled from one moment to another, in seconds since 1970. $1 from, $2 to.
select count(*) from inbox.message
where handled_at >= to_timestamp($1::double precision) and handled_at < to_timestamp($2::double precision)
