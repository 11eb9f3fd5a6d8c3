-- What a replay would publish of one leaf, by topic; as page.sql without $12, and with $1 null: of what is visible now.
-- Times from before their constraint are brought within it.
select topic, count(*) as messages, min(position) as first, max(position) as last,
    (array_agg(id order by position))[1] as first_id, (array_agg(id order by position desc))[1] as last_id,
    least(greatest(min(enqueued_at), '1970-01-01 00:00:00+00'), '9999-12-31 00:00:00+00') as first_at,
    least(greatest(max(enqueued_at), '1970-01-01 00:00:00+00'), '9999-12-31 00:00:00+00') as last_at
from outbox.message_/*leaf*/
where position > $3 and position <= $4
    and ($1::text is null or position < $2 or pg_visible_in_snapshot(tx, $1::text::pg_snapshot))
    and ($5::timestamptz is null or enqueued_at >= $5)
    and ($6::timestamptz is null or enqueued_at < $6)
    and ($7::text[] is null or topic ~ any ($7))
    and ($8::text[] is null or kind = any ($8))
    and ($9::text[] is null or key = any ($9))
    and ($10::uuid[] is null or id = any ($10))
    and ($11::uuid[] is null or correlation = any ($11))
group by topic
