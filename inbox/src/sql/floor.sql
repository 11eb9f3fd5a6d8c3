-- The moment before which nothing is admitted, because rows may be gone.
select floor from inbox.retention
