-- The next messages of a replay in one leaf, in order of position: what is visible in its snapshot and fits all that is
-- asked for. Planned for these values each time, so that what is null costs nothing. $1 snapshot, $2 the first position for
-- which it means something (before that lie eras that have ended, of which all is committed), $3 above this position, $4 up
-- to this one; each null if it is not asked for: $5 since, $6 until, $7 expressions for the topic, $8 kinds, $9 keys,
-- $10 ids, $11 correlations; $12 at most so many. The leaf's number is filled in.
select position, slot, id, correlation, causation, occurred_at, enqueued_at, source, topic, kind, key, headers, payload
from outbox.message_/*leaf*/
where position > $3 and position <= $4
    and (position < $2 or pg_visible_in_snapshot(tx, $1::text::pg_snapshot))
    and ($5::timestamptz is null or enqueued_at >= $5)
    and ($6::timestamptz is null or enqueued_at < $6)
    and ($7::text[] is null or topic ~ any ($7))
    and ($8::text[] is null or kind = any ($8))
    and ($9::text[] is null or key = any ($9))
    and ($10::uuid[] is null or id = any ($10))
    and ($11::uuid[] is null or correlation = any ($11))
order by position
limit $12
