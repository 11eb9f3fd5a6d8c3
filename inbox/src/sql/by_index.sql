-- Before a statement that is to read few of many rows, in the order of an index. A planner without statistics takes the many
-- for one, and would read and sort them all.
select pg_catalog.set_config('enable_sort', 'off', true),
    pg_catalog.set_config('enable_bitmapscan', 'off', true),
    pg_catalog.set_config('enable_seqscan', 'off', true)
