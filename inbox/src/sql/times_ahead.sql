-- What a database clock that was ahead has written of each consumer: processes that expire in more than a minute, kinds that
-- were registered more than a minute from now, and held keys that are due in more than a day. Only consumers with any.
with ahead as (
    select consumer, 1 as processes, 0 as kinds, 0 as keys
    from inbox.process where expires_at > clock_timestamp() + interval '1 minute'
    union all
    select consumer, 0, 1, 0
    from inbox.consumer_kind where last_seen_at > clock_timestamp() + interval '1 minute'
    union all
    select consumer, 0, 0, 1
    from inbox.held_key where state = 'retrying' and next_attempt_at > clock_timestamp() + interval '1 day'
)
select
    consumer, pg_catalog.sum(processes) as processes, pg_catalog.sum(kinds) as kinds,
    pg_catalog.sum(keys) as keys
from ahead
group by consumer
order by consumer
