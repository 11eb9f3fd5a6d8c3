-- Forgets processes of a relay that are dead and own nothing. $1 relay.
delete from outbox.process p
where p.relay = $1 and p.expires_at not between clock_timestamp() and clock_timestamp() + p.lasts + interval '1 minute'
    and not exists (select from outbox.cursor c where c.relay = $1 and c.owner = p.id)
