-- What has committed.
select id, key, version from soak.biz
