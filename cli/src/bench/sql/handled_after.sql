-- When the first message after a moment was handled, in seconds since 1970. $1 the moment.
select extract(epoch from min(handled_at))::double precision from inbox.message
where handled_at > to_timestamp($1::double precision)
