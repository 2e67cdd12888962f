-- name: city
-- The constants of this installation.
SELECT buckets, shards FROM city;

-- name: stocks
-- What a till must know of every stock, for the catalogue in memory.
SELECT s.stock_no, s.stock_id, s.category, s.face_value_fen, s.funded_fen, s.transaction_minimum_fen,
       s.valid_from, s.valid_until, s.refund_policy
  FROM stock s;

-- name: merchants
-- What a till must know of every merchant, for the catalogue in memory.
SELECT merchant_no, merchant_id, category, suspended FROM merchant;

-- name: ready
-- Whether the store answers.
SELECT 1;

-- name: registered
-- What request numbers of one bucket were registered with.
SELECT request_key, body_hash, voucher_id FROM request_number WHERE bucket = $1 AND request_key = ANY ($2::uuid[]);

-- name: register
-- Registers request numbers of one bucket; answers those that were free, with what each is bound to now:
-- of two bodies under one number in one statement it is not said which comes first.
INSERT INTO request_number (bucket, request_key, body_hash, voucher_id)
SELECT $1, * FROM unnest($2::uuid[], $3::bigint[], $4::bigint[]) AS n(request_key, body_hash, voucher_id) ORDER BY request_key
ON CONFLICT DO NOTHING RETURNING request_key, body_hash, voucher_id;

-- name: voucher_states
-- How vouchers of one bucket stand, and what the asking request itself did before (mine_at). Array position = item, from 1.
SELECT a.item, v.stock_no, v.person, mine.redeemed_at AS mine_at, mine.attempt AS mine_attempt, mine.bill_fen AS mine_bill_fen,
       mine.subsidy_fen AS mine_subsidy_fen, mine.order_no AS mine_order_no,
       refunded.refund_request_no, refunded.refunded_at, refunded.credit::text AS refund_credit, refunded.refund_fen,
       last.attempt AS last_attempt, last.credit::text AS last_credit
  FROM unnest($2::bigint[], $3::integer[], $4::text[]) WITH ORDINALITY AS a(voucher_id, merchant_no, use_request_no, item)
  LEFT JOIN voucher v ON v.bucket = $1 AND v.voucher_id = a.voucher_id
  LEFT JOIN LATERAL (SELECT r.attempt, r.redeemed_at, r.bill_fen, r.subsidy_fen, r.order_no FROM redemption r
        WHERE r.bucket = $1 AND r.voucher_id = a.voucher_id
          AND r.merchant_no = a.merchant_no AND r.use_request_no = a.use_request_no) mine ON true
  LEFT JOIN refund refunded ON refunded.bucket = $1 AND refunded.voucher_id = a.voucher_id AND refunded.attempt = mine.attempt
  LEFT JOIN LATERAL (SELECT r.attempt, f.credit FROM redemption r
        LEFT JOIN refund f ON f.bucket = r.bucket AND f.voucher_id = r.voucher_id AND f.attempt = r.attempt
        WHERE r.bucket = $1 AND r.voucher_id = a.voucher_id
        ORDER BY r.attempt DESC LIMIT 1) last ON true
 ORDER BY a.item;

-- name: redeem
-- Redeems vouchers of one bucket; see the function.
SELECT item, outcome::text AS outcome, redeemed_at FROM redeem_batch($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ORDER BY item;

-- name: refund
-- Refunds redemptions of one bucket; see the function.
SELECT item, outcome::text AS outcome, credit::text AS credit, refunded_at FROM refund_batch($1, $2, $3, $4, $5, $6, $7, $8) ORDER BY item;
