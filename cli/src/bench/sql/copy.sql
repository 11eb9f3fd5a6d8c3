-- The limit: the same columns of the same rows in the same order, with nothing decided about them.
copy (
    select position, slot, id, correlation, causation, occurred_at, enqueued_at, source, topic, kind, key, headers, payload
    from outbox.message
    order by position
) to stdout (format binary)
