-- What this database calls itself on the wire where a message names no source. $1 the source.
update outbox.origin set source = $1 where source <> $1
