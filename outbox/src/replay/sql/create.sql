-- Begins a replay of what is committed now, and writes down who asked for it. A commit that waits for the disk, so that
-- all that is visible here is on it: what is published next cannot be forgotten by a crash. Two who begin it at once begin
-- one. $1 name, $2 destination (null: each topic's), $3 after this position, $4 up to this one (null: the last), then what
-- was asked for, each null if nothing was: $5 since, $6 until, $7 topics, $8 kinds, $9 keys, $10 ids, $11 correlations,
-- $12 from this position, $13 to this one; $14 who, $15 why.
with waiting as materialized (
    select case when current_setting('synchronous_commit') = 'off' then set_config('synchronous_commit', 'on', true) end
),
begun as (
    insert into outbox.replay (
        name, era, seen, destination, after, to_position, since, until, topics, kinds, keys, ids, correlations, asked_from,
        asked_to
    )
    select $1, (select max(era) from outbox.cluster), pg_current_snapshot(), $2::text, $3::bigint,
        least($4::bigint, coalesce(pg_sequence_last_value('outbox.message_position_seq'::regclass), 0)),
        $5::timestamptz, $6::timestamptz, $7::text[], $8::text[], $9::text[], $10::uuid[], $11::uuid[], $12::bigint,
        $13::bigint
    from waiting
    on conflict (name) do nothing
    returning name
)
insert into outbox.audit (who, action, replay, reason) select $14::text, 'replay', begun.name, $15::text from begun
