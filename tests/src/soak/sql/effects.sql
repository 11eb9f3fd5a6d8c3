-- How often each effect has happened.
select message_id, count(*) from soak.effect group by message_id
