-- Ends the present era and opens the next, of this cluster. $1 its first position. Answers its number.
insert into outbox.cluster (era, system_identifier, first_position)
select max(c.era) + 1, (select system_identifier from pg_control_system()), $1 from outbox.cluster c
returning era
