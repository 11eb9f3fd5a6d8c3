-- What happened because of the messages. Append-only and without a unique index: it would hide a second effect.
create schema soak;
create table soak.effect (message_id uuid not null, key integer not null, version bigint not null);
