-- name: city
-- The constants of this installation.
SELECT buckets, shards FROM city;

-- name: stocks_on_offer
-- Every stock with its round, for the catalogue in memory.
SELECT s.stock_no, s.stock_id, s.round_no, r.campaign_no, s.partner_no, s.quantity, s.face_value_fen, s.funded_fen,
       s.transaction_minimum_fen, s.valid_from, s.valid_until, s.paused, r.opens_at, r.closes_at,
       r.per_person_and_partner_limit
  FROM stock s JOIN round r USING (round_no);

-- name: ready
-- Whether the store answers.
SELECT 1;

-- name: budget_fen
-- What a campaign may still issue.
SELECT coalesce(sum(credits_fen - debits_fen), 0)::bigint FROM account WHERE bucket = 0 AND campaign_no = $1 AND kind = 'BUDGET';

-- name: has_vouchers
-- Whether any voucher of a round is out ($1 its first number, $2 the first after it).
SELECT EXISTS (SELECT FROM voucher WHERE voucher_id >= $1 AND voucher_id < $2);

-- name: drain_position
-- How far the drain has read the log of a shard.
SELECT position FROM drain_position WHERE shard = $1;

-- name: restart_drain
-- Lets the drain begin a shard's new log. 0-0 and 0 mean the same; the text must change, so that nobody who
-- read the old position can move it.
UPDATE drain_position SET position = CASE position WHEN '0-0' THEN '0' ELSE '0-0' END WHERE shard = $1 AND position = $2;

-- name: lock_publishing
-- One worker at a time brings a round into Valkey.
SELECT pg_advisory_xact_lock(4822, $1);

-- name: voucher_by_request
-- The voucher that a partner's request number of one person brought, with how it stands; the newest, if a later round brought another.
SELECT v.voucher_id, v.stock_no, v.claimed_at, v.out_request_no, use.attempt IS NOT NULL AS was_used, use.credit::text AS credit
  FROM voucher v
  LEFT JOIN LATERAL (SELECT r.attempt, f.credit FROM redemption r
        LEFT JOIN refund f ON f.bucket = r.bucket AND f.voucher_id = r.voucher_id AND f.attempt = r.attempt
        WHERE r.bucket = v.bucket AND r.voucher_id = v.voucher_id ORDER BY r.attempt DESC LIMIT 1) use ON true
 WHERE v.bucket = $1 AND v.request_key = $2 AND v.person = $3 AND v.out_request_no = $4
 ORDER BY v.voucher_id DESC LIMIT 1;

-- name: voucher_by_id
-- One voucher by its number, with how it stands.
SELECT v.voucher_id, v.stock_no, v.claimed_at, v.out_request_no, use.attempt IS NOT NULL AS was_used, use.credit::text AS credit
  FROM voucher v
  LEFT JOIN LATERAL (SELECT r.attempt, f.credit FROM redemption r
        LEFT JOIN refund f ON f.bucket = r.bucket AND f.voucher_id = r.voucher_id AND f.attempt = r.attempt
        WHERE r.bucket = v.bucket AND r.voucher_id = v.voucher_id ORDER BY r.attempt DESC LIMIT 1) use ON true
 WHERE v.bucket = $1 AND v.voucher_id = $2;

-- name: vouchers_of_round
-- All vouchers of a round that a shard holds (partitions $4 to below $5), to rebuild its limits in Valkey; by pages.
SELECT v.voucher_id, v.stock_no, v.claimed_at, v.person, v.out_request_no
  FROM voucher v
 WHERE v.voucher_id > $1 AND v.voucher_id < $2 AND (v.voucher_id >> 28) & 1023 >= $4 AND (v.voucher_id >> 28) & 1023 < $5
 ORDER BY v.voucher_id LIMIT $3;
