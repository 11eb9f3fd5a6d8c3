-- Has a held key tried again, now and afresh. $1 relay, $2 position that names the hold.
update outbox.held_key
set state = 'retrying', attempts = 0, next_attempt_at = clock_timestamp()
where relay = $1 and position = $2
