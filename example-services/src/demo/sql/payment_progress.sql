-- How many payments are decided.
select count(*) from payments.payment
