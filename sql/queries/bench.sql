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


-- name: market
-- What a run must know of the stock that is spent.
SELECT stock_no, category, face_value_fen, funded_fen, transaction_minimum_fen FROM stock WHERE stock_id = $1;

-- name: shops
-- Merchants by their ids, with the terminal of each.
SELECT m.merchant_id, m.merchant_no, t.terminal_no
  FROM merchant m JOIN terminal t USING (merchant_no) WHERE m.merchant_id = ANY ($1::text[]);

-- name: settle_down
-- Tidies up after a load, so that nothing does it in the middle of a measurement.
VACUUM ANALYZE;

-- name: checkpoint
-- Writes down what waits to be written.
CHECKPOINT;

-- name: sizes
-- Bytes of every table (with its TOAST and maps) and every index; partitions count for their parents.
SELECT coalesce(parent.relname, c.relname)::text AS relation, c.relkind = 'i' AS is_index,
       sum(CASE WHEN c.relkind = 'i' THEN pg_total_relation_size(c.oid) ELSE pg_table_size(c.oid) END)::bigint AS bytes
  FROM pg_class c
  LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
  LEFT JOIN pg_class parent ON parent.oid = i.inhparent
 WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'i')
 GROUP BY 1, 2;

-- name: redeemed
-- Redemptions of a round (the first number $1, the first after it $2), and how many vouchers and till's numbers those are.
SELECT count(*) AS redemptions, count(DISTINCT voucher_id) AS vouchers, count(DISTINCT (merchant_no, use_request_no)) AS numbers
  FROM redemption WHERE voucher_id >= $1 AND voucher_id < $2;

-- name: redeemed_vouchers
-- Vouchers of a round that are redeemed.
SELECT voucher_id FROM redemption WHERE voucher_id >= $1 AND voucher_id < $2;

-- name: redemptions_of_round
-- A round's redemptions, every column, at most so many, as rows that could be inserted again.
SELECT * FROM redemption WHERE voucher_id >= $1 AND voucher_id < $2 LIMIT $3;

-- name: insert_redemptions
-- Inserts rows as they are: nothing is looked up, nothing is checked but what the table itself demands.
INSERT INTO redemption SELECT r.* FROM unnest($1::redemption[]) AS r;
