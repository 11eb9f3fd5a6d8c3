-- What a transaction that is open for the whole soak has written, in another database of the cluster.
create table held (note text not null);
