-- Before messages are copied to held keys: from here on none of theirs is settled that the copies do not see as settled.
-- $1 relay, $2 the positions that name the holds.
select from outbox.held_key h where h.relay = $1 and h.position = any ($2) order by h.position for share
