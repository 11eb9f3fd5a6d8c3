-- The truth of what this transaction says. One array a column: $1 message, $2 key, $3 version.
insert into soak.biz (id, key, version)
select m.id, m.key, m.version from unnest($1::uuid[], $2::integer[], $3::bigint[]) as m (id, key, version)
