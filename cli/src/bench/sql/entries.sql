-- What a business transaction adds to that updates nothing.
create table entry (account integer not null, amount bigint not null)
