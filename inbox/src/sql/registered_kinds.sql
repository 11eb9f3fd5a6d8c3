-- The kinds that some process of a consumer has registered.
-- $1 consumer
select kind from inbox.consumer_kind where consumer = $1::text
