-- For this transaction: "relation already exists, skipping" at every start would be noise in the service's log.
set local client_min_messages = warning
