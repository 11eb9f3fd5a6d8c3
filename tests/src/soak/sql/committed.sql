-- How many messages have committed.
select count(*) from soak.biz
