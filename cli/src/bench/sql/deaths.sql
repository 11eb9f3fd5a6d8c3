-- When a process of the consumer was last found dead, in seconds since 1970; how many keys are held, how many parked.
select
    (select extract(epoch from died_at)::double precision from inbox.consumer),
    (select count(*) from inbox.held_key),
    (select count(*) from inbox.held_key where state = 'parked')
