-- The workflows of a message that a consumer holds back. $1 its id, or the workflow's.
select distinct h.correlation from inbox.held_message h
where h.correlation is not null and (h.message_id = $1 or h.correlation = $1)
