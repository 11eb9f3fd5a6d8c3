-- What the business transaction of the latency bench changes.
create table account (id integer primary key, balance bigint not null)
