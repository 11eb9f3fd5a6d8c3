-- All topics that processes of a consumer group have ever asked for. $1 relay.
select pattern from outbox.group_topic where relay = $1::text
