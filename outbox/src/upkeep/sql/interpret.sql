-- Until the transaction ends, no statement is compiled. pins.sql looks expensive to the planner and takes a few
-- milliseconds; compiling it takes a second or two.
select set_config('jit', 'off', true)
