-- Copies a message of the log to its held key. $1 relay, $2 position, $3 the held key's position, then the message.
insert into outbox.held_message (
    relay, position, held, id, correlation, causation, occurred_at, enqueued_at, source, topic, kind, key, headers, payload
)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13::jsonb, $14)
on conflict (relay, position) do nothing
