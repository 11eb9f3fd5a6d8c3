-- Shuts everybody out of a leaf until the transaction ends: afterwards all that was ever written to it is committed and
-- visible, or gone. The leaf's number is filled in.
lock table outbox.message_/*leaf*/ in access exclusive mode
