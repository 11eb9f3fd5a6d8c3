-- Every consumer that has run here or holds something back.
with held as (
    select
        consumer,
        count(*) filter (where state = 'retrying') as retrying,
        count(*) filter (where state = 'parked') as parked,
        pg_catalog.min(held_at) as oldest_held_at
    from inbox.held_key
    group by consumer
), waiting as (
    select
        held_message.consumer, count(*) as messages,
        count(*) filter (where held_key.state = 'parked') as parked_messages
    from inbox.held_message
    join inbox.held_key on held_key.consumer = held_message.consumer and held_key.hold = held_message.hold
    group by held_message.consumer
)
select
    coalesce(registered.name, held.consumer) as consumer, registered.started_at,
    coalesce(held.retrying, 0) as retrying, coalesce(held.parked, 0) as parked,
    coalesce(waiting.messages, 0) as messages, coalesce(waiting.parked_messages, 0) as parked_messages,
    held.oldest_held_at,
    (
        select count(*) from inbox.process
        where process.consumer = registered.name
            and process.expires_at between clock_timestamp() and clock_timestamp() + interval '1 minute'
    ) as processes
from inbox.consumer as registered
full join held on held.consumer = registered.name
left join waiting on waiting.consumer = held.consumer
order by 1
