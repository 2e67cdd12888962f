-- name: city
-- The constants of this installation.
SELECT buckets, shards FROM city;

-- name: stocks
-- What a till must know of every stock, for the catalogue in memory. The columns are the fields of redemption.offers.Offer.
SELECT s.stock_no, s.stock_id, s.category, coalesce(n.name_zh, s.category) AS category_zh, coalesce(n.name_en, s.category) AS category_en,
       s.face_value_fen, s.funded_fen, s.transaction_minimum_fen, s.city_bp, s.platform_bp, s.merchant_bp,
       s.valid_from, s.valid_until, s.valid_days AS valid_days_after_claim, s.refund_policy, s.stacks_with, s.till_code,
       ARRAY(SELECT d.district FROM stock_district d WHERE d.stock_no = s.stock_no) AS districts,
       ARRAY(SELECT m.merchant_no FROM stock_merchant m WHERE m.stock_no = s.stock_no) AS merchants
  FROM stock s JOIN round r USING (round_no)
  LEFT JOIN category_name n ON n.campaign_no = r.campaign_no AND n.category = s.category;

-- name: merchants
-- What a till must know of every merchant, for the catalogue in memory.
SELECT merchant_no, merchant_id, category, district, suspended AND coalesce(suspended_until > $1::timestamptz, true) AS suspended FROM merchant;

-- name: stores
-- The same of terminals in stores that are of another kind than their merchant, or in another district.
SELECT t.terminal_no, m.merchant_no, m.merchant_id, e.category, e.district,
       m.suspended AND coalesce(m.suspended_until > $1::timestamptz, true) AS suspended
  FROM terminal t JOIN store e USING (store_no) JOIN merchant m ON m.merchant_no = t.merchant_no
 WHERE (e.category, e.district) <> (m.category, m.district);

-- name: analyze_young
-- Has plans made anew that were made for empty tables; see the function.
SELECT analyze_young();

-- name: ready
-- Whether the store answers.
SELECT 1;

-- name: oldest_round
-- The first round whose vouchers ran out after $1: the numbers of its rows and of all later ones are remembered. 0 when all are.
SELECT coalesce(min(round_no), 0) FROM stock WHERE valid_until > $1;

-- name: taken
-- Numbers of one bucket that stand for something else; see the function.
SELECT item FROM taken_numbers($1, $2, $3, $4, $5, $6, $7, $8);

-- name: register
-- Registers numbers of one bucket for vouchers of others, and answers those that stand for something else; see the function.
SELECT item FROM register_numbers($1, $2, $3, $4, $5, $6, $7, $8);

-- name: find
-- The vouchers that numbers of one bucket stand for; see the function.
SELECT item, voucher_id FROM find_numbers($1, $2, $3, $4, $5);

-- name: voucher_states
-- How vouchers ($2) of one bucket stand at $7, and what the asking request itself ($3 merchant, $4 number, $5 whether it is a
-- hold; null: no) did before (mine_*). last_at: when the voucher was last held or redeemed; cap: which cap its use on a day ($6) would
-- break; is_stock_expired: asked once for each stock. $8, $9: the first and the last voucher, so that tables of rounds without any are
-- left out from the start. Array position = item, from 1.
SELECT a.item, v.stock_no, v.person, v.claimed_at, last.attempt AS last_attempt,
       (SELECT f.credit::text FROM refund f WHERE f.bucket = $1 AND f.voucher_id = a.voucher_id AND f.voucher_id BETWEEN $8 AND $9
           AND f.attempt = last.attempt LIMIT 1) AS last_credit,
       coalesce(held.attempt > coalesce(last.attempt, 0) AND held.expires_at > $7 AND NOT EXISTS (SELECT FROM hold_end e
            WHERE e.bucket = $1 AND e.voucher_id = a.voucher_id AND e.voucher_id BETWEEN $8 AND $9 AND e.attempt = held.attempt), false) AS is_held,
       greatest(last.redeemed_at, held.held_at) AS last_at,
       coalesce(v.stock_no = ANY ((SELECT expired_stocks($1, array_agg(DISTINCT w.stock_no)) FROM unnest($2::bigint[]) AS s(voucher_id)
            JOIN voucher w ON w.bucket = $1 AND w.voucher_id = s.voucher_id AND w.voucher_id BETWEEN $8 AND $9)::integer[]), false) AS is_stock_expired,
       CASE WHEN EXISTS (SELECT FROM redeem_cap) THEN cap_broken($1, $7, a.day, v.person, v.stock_no)::text END AS cap,
       coalesce(mine.redeemed_at, mine_held.held_at) AS mine_at, coalesce(mine.bill_fen, mine_held.bill_fen) AS mine_bill_fen,
       coalesce(mine.order_no, mine_held.order_no) AS mine_order_no, mine_held.expires_at AS mine_expires_at
  FROM unnest($2::bigint[], $3::integer[], $4::text[], $5::boolean[], $6::date[]) WITH ORDINALITY
       AS a(voucher_id, merchant_no, request_no, is_hold, day, item)
  LEFT JOIN voucher v ON v.bucket = $1 AND v.voucher_id = a.voucher_id AND v.voucher_id BETWEEN $8 AND $9
  LEFT JOIN LATERAL (SELECT r.attempt, r.redeemed_at FROM redemption r
        WHERE r.bucket = $1 AND r.voucher_id = a.voucher_id AND r.voucher_id BETWEEN $8 AND $9 ORDER BY r.attempt DESC LIMIT 1) last ON true
  LEFT JOIN LATERAL (SELECT h.attempt, h.held_at, h.expires_at FROM hold h
        WHERE h.bucket = $1 AND h.voucher_id = a.voucher_id AND h.voucher_id BETWEEN $8 AND $9 ORDER BY h.attempt DESC LIMIT 1) held ON true
  LEFT JOIN LATERAL (SELECT r.redeemed_at, r.bill_fen, r.order_no FROM redemption r
        WHERE last.attempt IS NOT NULL AND a.is_hold IS NOT TRUE AND r.bucket = $1 AND r.voucher_id = a.voucher_id AND r.voucher_id BETWEEN $8 AND $9
          AND r.merchant_no = a.merchant_no AND r.use_request_no = a.request_no) mine ON true
  LEFT JOIN LATERAL (SELECT h.held_at, h.bill_fen, h.order_no, h.expires_at FROM hold h
        WHERE held.attempt IS NOT NULL AND a.is_hold AND h.bucket = $1 AND h.voucher_id = a.voucher_id AND h.voucher_id BETWEEN $8 AND $9
          AND h.merchant_no = a.merchant_no AND h.hold_request_no = a.request_no) mine_held ON true
 ORDER BY a.item;

-- name: redeem
-- Redeems or holds vouchers of one bucket; see the function.
SELECT item, outcome::text AS outcome, booked_at, expires_at
  FROM redeem_batch($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20) ORDER BY item;

-- name: hold_states
-- Holds ($2 voucher, $3 merchant, $4 number) of one bucket, and how they ended, if they did before their time (ended_*).
-- is_past: it had run out on somebody's clock, who went on from there.
-- Array position = item, from 1.
SELECT a.item, h.stock_no, h.terminal_no, h.bill_fen, h.subsidy_fen, h.order_no, h.held_at, h.expires_at, v.person, v.claimed_at,
       e.outcome::text AS ended, e.ended_at, e.request_no AS ended_by,
       EXISTS (SELECT FROM hold n WHERE n.bucket = $1 AND n.voucher_id = h.voucher_id AND n.attempt > h.attempt)
    OR EXISTS (SELECT FROM redemption n WHERE n.bucket = $1 AND n.voucher_id = h.voucher_id AND n.attempt > h.attempt)
    OR is_stock_expired($1, h.stock_no) AS is_past
  FROM unnest($2::bigint[], $3::integer[], $4::text[]) WITH ORDINALITY AS a(voucher_id, merchant_no, hold_request_no, item)
  LEFT JOIN LATERAL (SELECT i.* FROM hold i WHERE i.bucket = $1 AND i.voucher_id = a.voucher_id
        AND i.merchant_no = a.merchant_no AND i.hold_request_no = a.hold_request_no) h ON true
  LEFT JOIN hold_end e ON e.bucket = $1 AND e.voucher_id = h.voucher_id AND e.attempt = h.attempt
  LEFT JOIN voucher v ON v.bucket = $1 AND v.voucher_id = a.voucher_id
 ORDER BY a.item;

-- name: end_holds
-- Confirms or cancels holds of one bucket; see the function.
SELECT item, outcome::text AS outcome, ended_at FROM end_holds($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) ORDER BY item;

-- name: use_states
-- Redemptions ($2 voucher, $3 merchant, $4 number) of one bucket with what was given back, in all and by one refund ($5).
-- room_fen: how much more of earlier days' sales the merchant may give back; null for a sale of the day on which a refund
-- would be booked, which is today ($6) or the first open one. Array position = item, from 1.
SELECT a.item, r.stock_no, r.attempt, r.bill_fen, r.subsidy_fen, r.order_no, r.redeemed_at, v.person, v.claimed_at,
       coalesce(f.refunds, 0)::smallint AS refunds, coalesce(f.refunded_fen, 0)::bigint AS refunded_fen, coalesce(f.back_fen, 0)::bigint AS back_fen,
       f.is_restored, f.refunded_at, f.refund_request_no, m.refund_fen AS mine_refund_fen, m.subsidy_fen AS mine_subsidy_fen,
       m.refunded_at AS mine_at, m.credit::text AS mine_credit, m.back_fen AS mine_back_fen,
       CASE WHEN r.booked_on < greatest($6, day.first_open) THEN refund_room_fen($1, a.merchant_no, day.first_open) END AS room_fen
  FROM (SELECT coalesce(max(c.day) + 1, '-infinity') AS first_open FROM day_close c WHERE c.bucket = $1) AS day
 CROSS JOIN unnest($2::bigint[], $3::integer[], $4::text[], $5::text[]) WITH ORDINALITY AS a(voucher_id, merchant_no, use_request_no, refund_request_no, item)
  LEFT JOIN voucher v ON v.bucket = $1 AND v.voucher_id = a.voucher_id
  LEFT JOIN LATERAL (SELECT u.* FROM redemption u WHERE u.bucket = $1 AND u.voucher_id = a.voucher_id
        AND u.merchant_no = a.merchant_no AND u.use_request_no = a.use_request_no) r ON true
  LEFT JOIN LATERAL (SELECT count(*) AS refunds, sum(g.refund_fen) AS refunded_fen, sum(g.subsidy_fen) AS back_fen, bool_or(g.credit = 'ISSUED') AS is_restored,
             max(g.refunded_at) AS refunded_at, (array_agg(g.refund_request_no ORDER BY g.refund_no DESC))[1] AS refund_request_no
        FROM refund g WHERE g.bucket = $1 AND g.voucher_id = r.voucher_id AND g.attempt = r.attempt) f ON true
  LEFT JOIN LATERAL (SELECT g.*, (SELECT sum(b.subsidy_fen) FROM refund b WHERE b.bucket = $1 AND b.voucher_id = g.voucher_id
             AND b.attempt = g.attempt AND b.refund_no <= g.refund_no)::bigint AS back_fen
        FROM refund g WHERE g.bucket = $1 AND g.voucher_id = r.voucher_id AND g.attempt = r.attempt
          AND g.refund_request_no = a.refund_request_no) m ON true
 ORDER BY a.item;

-- name: refund
-- Refunds redemptions of one bucket; see the function.
SELECT item, outcome::text AS outcome, credit::text AS credit, subsidy_fen, refunded_at
  FROM refund_batch($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ORDER BY item;

-- name: uses_of_voucher
-- What a merchant ($3) did with a voucher ($2, bucket $1): every redemption and every hold, newest first.
SELECT r.attempt, r.use_request_no, NULL AS hold_request_no FROM redemption r
 WHERE r.bucket = $1 AND r.voucher_id = $2 AND r.merchant_no = $3
UNION ALL
SELECT h.attempt, NULL, h.hold_request_no FROM hold h
 WHERE h.bucket = $1 AND h.voucher_id = $2 AND h.merchant_no = $3
   AND NOT EXISTS (SELECT FROM redemption r WHERE r.bucket = $1 AND r.voucher_id = $2 AND r.attempt = h.attempt)
 ORDER BY 1 DESC LIMIT 20;
