-- Removes all messages of a leaf. The leaf's number is filled in.
truncate table outbox.message_/*leaf*/
