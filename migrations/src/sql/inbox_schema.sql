-- Where everything else is made. A database's owner may have made it already.
create schema if not exists inbox;
