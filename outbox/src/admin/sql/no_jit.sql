-- Has this transaction run statements as they are: the planner takes tables that were never analyzed for full, and
-- compiling for that takes seconds, counting milliseconds.
select set_config('jit', 'off', true)
