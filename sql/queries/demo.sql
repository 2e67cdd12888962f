-- name: stock_numbers
-- Stocks of a campaign with how many of each are out.
SELECT s.stock_no, s.stock_id, s.quantity, s.face_value_fen,
       (SELECT count(*) FROM voucher v WHERE v.stock_no = s.stock_no
           AND v.voucher_id >= s.round_no::bigint << 38 AND v.voucher_id < (s.round_no::bigint + 1) << 38) AS issued
  FROM stock s JOIN round r USING (round_no) WHERE r.campaign_no = $1 ORDER BY s.stock_no;

-- name: sales
-- What tills booked in a campaign: redemptions and refunds with their money.
SELECT (SELECT count(*) FROM redemption) AS redeemed, (SELECT count(*) FROM refund) AS refunded,
       (SELECT coalesce(sum(subsidy_fen), 0) FROM redemption)::bigint - (SELECT coalesce(sum(subsidy_fen), 0) FROM refund)::bigint
           AS subsidy_fen,
       (SELECT coalesce(sum(bill_fen), 0) FROM redemption r WHERE NOT EXISTS (SELECT FROM refund f
            WHERE f.bucket = r.bucket AND f.voucher_id = r.voucher_id AND f.attempt = r.attempt))::bigint AS bills_fen;

-- name: balances
-- What the accounts of a campaign hold, all buckets and merchants together.
SELECT kind::text AS kind, sum(balance_fen)::bigint AS balance_fen FROM balance WHERE campaign_no = $1 GROUP BY kind;

-- name: returned_fen
-- What RETURNED holds for a campaign.
SELECT coalesce(sum(credits_fen - debits_fen), 0)::bigint FROM account WHERE campaign_no = $1 AND kind = 'RETURNED';

-- name: open_flags
-- Who is flagged, with merchants by the name they go by.
SELECT DISTINCT f.subject_kind, coalesce(m.merchant_id, f.subject) AS subject
  FROM flag f LEFT JOIN merchant m ON f.subject_kind = 'merchant' AND m.merchant_no::text = f.subject
 WHERE f.closed_at IS NULL;

-- name: signals_read
-- How far anti-fraud has read its stream.
SELECT entry_ms || '-' || entry_seq FROM signal_position LIMIT 1;

-- name: returned_to_city_fen
-- What went back to the city's fund.
SELECT coalesce(sum(amount_fen), 0)::bigint FROM transfer WHERE campaign_no = $1 AND kind = 'RETURN' AND credit = 'CITY_FUND';
