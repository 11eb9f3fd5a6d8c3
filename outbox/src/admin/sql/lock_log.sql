-- Keeps writers and relays out until the transaction ends, when all that have the log open have finished.
lock table outbox.message, outbox.process, outbox.cursor in exclusive mode
