-- The eras of the log, in order.
select era, first_position from outbox.cluster order by era
