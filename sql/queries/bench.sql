-- Queries of stack/bench. They run as the administrator of a database that the bench made for itself.

-- name: durability
-- The settings without which a commit may be told before it lasts.
SELECT current_setting('fsync') AS fsync, current_setting('synchronous_commit') AS synchronous_commit,
       current_setting('server_version') AS version;

-- name: issued
-- How many vouchers of a round are out, and to how many people (the first number $1, the first after it $2).
SELECT count(*) AS vouchers, count(DISTINCT person) AS people FROM voucher WHERE voucher_id >= $1 AND voucher_id < $2;

-- name: rows_of_round
-- A round's vouchers, every column, as rows that could be copied again.
SELECT * FROM voucher WHERE voucher_id >= $1 AND voucher_id < $2;
