-- The effect of a message. $1 its id.
insert into public.bench_effect (message) values ($1::uuid)
