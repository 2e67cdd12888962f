-- name: campaign_no
-- A campaign by the name the outside world uses.
SELECT campaign_no FROM campaign WHERE campaign_id = $1;

-- name: buckets
-- All buckets of the city, in order.
SELECT generate_series(0, buckets - 1)::smallint AS bucket FROM city;

-- name: close_day
-- Closes a day in one bucket, and every open day before it.
SELECT close_day($1, $2, $3);

-- name: propose
-- Draws up a batch; see the function.
SELECT refusal, detail, batch_no FROM propose_settlement($1, $2, $3, $4);

-- name: decide
-- Approves or rejects a batch; see the function.
SELECT refusal, detail FROM decide_settlement($1, $2, $3, $4, $5);

-- name: answer
-- Imports a bank file that is kept already; see the function.
SELECT refusal, detail FROM answer_settlement($1, $2, $3);

-- name: batch_state
-- One batch as it stands.
SELECT s.*, c.campaign_id FROM settlement_batch_state s JOIN campaign c USING (campaign_no) WHERE s.batch_no = $1;

-- name: batch_states
-- Batches of a campaign as they stand, the newest first.
SELECT s.*, c.campaign_id FROM settlement_batch_state s JOIN campaign c USING (campaign_no)
 WHERE s.campaign_no = $1 ORDER BY s.batch_no DESC LIMIT $2;

-- name: line_states
-- Lines of a batch as they stand.
SELECT l.* FROM settlement_line_state l WHERE l.batch_no = $1 ORDER BY l.line_no;

-- name: batch_no
-- A batch by the name that the bank knows.
SELECT batch_no FROM settlement_batch WHERE batch_id = $1;

-- name: exports
-- Files made of a batch.
SELECT format, sha256, exported_by, exported_at FROM settlement_export WHERE batch_no = $1 ORDER BY format;

-- name: record_export
-- Notes that a file was made; of one batch and format there is only ever one hash.
INSERT INTO settlement_export (batch_no, format, sha256, exported_by, exported_at) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (batch_no, format) DO NOTHING;

-- name: recorded_hash
-- The hash under which a file was made.
SELECT sha256 FROM settlement_export WHERE batch_no = $1 AND format = $2;

-- name: lock_batch
-- Waits until nobody else settles a batch's campaign, until the end of the transaction.
SELECT lock_settlement(campaign_no) FROM settlement_batch WHERE batch_no = $1;

-- name: find_bank_file
-- A file of the bank by its hash.
SELECT bank_file_no, batch_no FROM bank_file WHERE sha256 = $1;

-- name: keep_bank_file
-- Keeps what a file of the bank says about itself.
INSERT INTO bank_file (batch_no, sha256, order_sha256, row_count, amount_fen, received_at) VALUES ($1, $2, $3, $4, $5, $6)
RETURNING bank_file_no;

-- name: keep_bank_rows
-- Keeps the rows of a bank file, as parallel arrays.
INSERT INTO bank_row (bank_file_no, row_no, line_no, payee_account, amount_fen, outcome, booked_on, bank_reference, reason)
SELECT $1, r.row_no, r.line_no, r.payee_account, r.amount_fen, r.outcome::bank_outcome, r.booked_on, r.bank_reference, r.reason
  FROM unnest($2::integer[], $3::integer[], $4::text[], $5::bigint[], $6::text[], $7::date[], $8::text[], $9::text[])
    AS r(row_no, line_no, payee_account, amount_fen, outcome, booked_on, bank_reference, reason);

-- name: answered_by_file
-- How many lines a file answered, and how.
SELECT count(*) FILTER (WHERE outcome = 'PAID') AS paid_count,
       coalesce(sum(amount_fen) FILTER (WHERE outcome = 'PAID'), 0)::bigint AS paid_fen,
       count(*) FILTER (WHERE outcome = 'REJECTED') AS rejected_count,
       coalesce(sum(amount_fen) FILTER (WHERE outcome = 'REJECTED'), 0)::bigint AS rejected_fen
  FROM bank_row WHERE bank_file_no = $1;

-- name: stocks_over
-- Stocks whose vouchers can no longer be used since $1, with the buckets in which their money is not yet taken back.
SELECT s.stock_no, s.stock_id, b.bucket
  FROM stock s CROSS JOIN (SELECT generate_series(0, buckets - 1)::smallint AS bucket FROM city) b
 WHERE s.valid_until < $1
   AND NOT EXISTS (SELECT FROM transfer t WHERE t.bucket = b.bucket AND t.kind = 'EXPIRE' AND t.reference = 'stock ' || s.stock_no)
 ORDER BY s.stock_no, b.bucket;

-- name: expire_stock
-- Moves the money of a stock's unused vouchers in one bucket to RETURNED; answers how many they were.
SELECT expire_stock($1, $2, $3);

-- name: return_unused
-- Moves money out of RETURNED; see the function.
SELECT refusal, detail FROM return_unused($1, $2::text::account_kind, $3, $4, $5, $6);

-- name: merchant
-- The name of a merchant.
SELECT merchant_no, merchant_id, name FROM merchant WHERE merchant_no = $1;

-- name: merchant_opening
-- What a merchant was owed before a day: sales and refunds of earlier days, closed or not, less what went to the bank before it began.
WITH closed AS MATERIALIZED (
    SELECT b.bucket, coalesce(max(d.day), '-infinity') AS day
      FROM (SELECT generate_series(0, buckets - 1)::smallint AS bucket FROM city) b LEFT JOIN day_close d USING (bucket) GROUP BY b.bucket
)
SELECT (coalesce((SELECT sum(m.redeemed_fen - m.refunded_fen) FROM merchant_day m WHERE m.merchant_no = $1 AND m.day < $2), 0)
      + coalesce((SELECT sum(r.subsidy_fen) FROM redemption r JOIN closed c USING (bucket) WHERE r.merchant_no = $1
                     AND r.booked_on < $2 AND r.booked_on > c.day AND r.booked_on > (SELECT min(day) FROM closed)), 0)
      - coalesce((SELECT sum(f.subsidy_fen) FROM refund f JOIN closed c USING (bucket) WHERE f.merchant_no = $1
                     AND f.booked_on < $2 AND f.booked_on > c.day), 0)
      - coalesce((SELECT sum(l.amount_fen) FROM settlement_line_state l
                   WHERE l.merchant_no = $1 AND l.state IN ('SETTLING', 'PAID', 'REJECTED') AND l.approved_at < $3), 0)
      + coalesce((SELECT sum(l.amount_fen) FROM settlement_line_state l
                   WHERE l.merchant_no = $1 AND l.state = 'REJECTED' AND l.answered_at < $3), 0))::bigint AS opening_fen;

-- name: merchant_day_totals
-- What a merchant redeemed and refunded on one day.
SELECT (SELECT count(*) FROM redemption r WHERE r.merchant_no = $1 AND r.booked_on = $2) AS redeemed_count,
       coalesce((SELECT sum(r.subsidy_fen) FROM redemption r WHERE r.merchant_no = $1 AND r.booked_on = $2), 0)::bigint AS redeemed_fen,
       (SELECT count(*) FROM refund f WHERE f.merchant_no = $1 AND f.booked_on = $2) AS refunded_count,
       coalesce((SELECT sum(f.subsidy_fen) FROM refund f WHERE f.merchant_no = $1 AND f.booked_on = $2), 0)::bigint AS refunded_fen;

-- name: merchant_day_entries
-- A merchant's redemptions and refunds of one day, in the order in which they happened; by pages.
SELECT 'REDEEM' AS kind, r.redeemed_at AS occurred_at, r.voucher_id, r.attempt, r.bill_fen, r.subsidy_fen, r.use_request_no,
       '' AS refund_request_no, r.order_no, t.terminal_id
  FROM redemption r LEFT JOIN terminal t USING (terminal_no) WHERE r.merchant_no = $1 AND r.booked_on = $2
UNION ALL
SELECT 'REFUND', f.refunded_at, f.voucher_id, f.attempt, f.refund_fen, -f.subsidy_fen, r.use_request_no,
       f.refund_request_no, r.order_no, t.terminal_id
  FROM refund f JOIN redemption r ON r.bucket = f.bucket AND r.voucher_id = f.voucher_id AND r.attempt = f.attempt
  LEFT JOIN terminal t ON t.terminal_no = r.terminal_no
 WHERE f.merchant_no = $1 AND f.booked_on = $2
 ORDER BY occurred_at, voucher_id, attempt, kind LIMIT $3 OFFSET $4;

-- name: merchant_lines
-- A merchant's settlement lines of a day, and those that moved between two moments.
SELECT l.* FROM settlement_line_state l
 WHERE l.merchant_no = $1
   AND (l.day = $2 OR l.approved_at >= $3 AND l.approved_at < $4 OR l.answered_at >= $3 AND l.answered_at < $4)
 ORDER BY l.batch_no, l.line_no;
