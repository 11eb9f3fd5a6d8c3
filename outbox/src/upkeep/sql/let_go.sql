-- Gives up the upkeep's lease, so that another process has it at its next try. $1 holder.
update outbox.upkeep set holder = null, expires_at = null, rests = null where holder = $1
