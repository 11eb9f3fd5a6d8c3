-- Rings the doorbell: for every relay of this database that listens, with nothing to say. Alone and at once, never in a
-- business transaction, whose commit would wait with others for one lock, and fail when the queue is full.
notify outbox_doorbell
