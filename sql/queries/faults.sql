-- Queries of stack/faults: what the books say of claims that clients made while the stack was broken.

-- name: partner_no
-- Our number of a partner.
SELECT partner_no FROM partner WHERE partner_id = $1::text

-- name: vouchers_of_numbers
-- Vouchers by their claims' numbers ($2) and the keys of these ($1), all there are. Of some 160,000 numbers a few share a key.
SELECT out_request_no, person, voucher_id FROM voucher
 WHERE request_key & 524287 = ANY (ARRAY(SELECT k & 524287 FROM unnest($1::integer[]) AS k)) AND request_key = ANY ($1)
   AND out_request_no = ANY ($2) ORDER BY voucher_id


-- name: deeds_of_vouchers
-- Everything tills did with these vouchers: uses, refunds, holds, cancellations of holds. One that came when the hold had
-- run out may be written down, so that nobody confirms it afterwards, and ended nothing.
WITH asked AS (SELECT * FROM unnest($1::bigint[]) AS a(voucher_id)), deed AS (
    SELECT r.merchant_no, 'redeem' AS verb, r.use_request_no AS number, r.voucher_id, r.attempt, r.bill_fen AS fen, r.subsidy_fen,
           false AS lives_on
      FROM redemption r JOIN asked USING (voucher_id)
    UNION ALL
    SELECT f.merchant_no, 'refund', f.refund_request_no, f.voucher_id, f.attempt, f.refund_fen, f.subsidy_fen, f.credit = 'ISSUED'
      FROM refund f JOIN asked USING (voucher_id)
    UNION ALL
    SELECT h.merchant_no, 'hold', h.hold_request_no, h.voucher_id, h.attempt, h.bill_fen, h.subsidy_fen, false
      FROM hold h JOIN asked USING (voucher_id)
    UNION ALL
    SELECT h.merchant_no, 'cancel', e.request_no, h.voucher_id, h.attempt, h.bill_fen, h.subsidy_fen, false
      FROM hold h JOIN asked USING (voucher_id) JOIN hold_end e USING (bucket, voucher_id, attempt)
     WHERE e.outcome = 'CANCELLED' AND e.ended_at < h.expires_at
)
SELECT m.merchant_id, d.* FROM deed d JOIN merchant m USING (merchant_no);

-- name: next_day
-- The first day that is open in every bucket, if any was ever closed.
SELECT max(day) + 1 FROM day_close;

-- name: undecided_batch
-- A batch that was drawn up and never decided, because whoever did it was interrupted.
SELECT b.batch_no FROM settlement_batch b WHERE NOT EXISTS (SELECT FROM settlement_decision d WHERE d.batch_no = b.batch_no);

-- name: end_validity
-- The vouchers of a stock can be used until then. No city could do that: it is what time does, made quick.
UPDATE stock SET valid_until = $2 WHERE stock_id = $1;

-- name: buckets_of_stock
-- Our number of a stock, and the buckets in which its vouchers are.
SELECT s.stock_no, b::smallint AS bucket FROM stock s, city, generate_series(0, city.buckets - 1) AS b
 WHERE s.stock_id = $1 ORDER BY b;
