-- Enough rows that writers seldom wait for one another. $1 how many.
insert into account select id, 0 from generate_series(0, $1 - 1) as id
