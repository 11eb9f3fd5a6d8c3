-- What the handler writes.
create table public.bench_effect (number bigint generated always as identity primary key, message uuid not null)
