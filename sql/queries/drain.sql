-- name: try_lead
-- True when this connection is now the one that drains a shard.
SELECT pg_try_advisory_lock(4818, $1);

-- name: position
-- The last log entry of a shard that is in the voucher table.
SELECT position FROM drain_position WHERE shard = $1;

-- name: start_position
-- A shard that was never drained starts at the beginning of its log.
INSERT INTO drain_position (shard, position) VALUES ($1, '0-0') ON CONFLICT DO NOTHING;

-- name: move_position
-- Moves a shard's position; no row comes back when someone else moved it meanwhile.
UPDATE drain_position SET position = $3 WHERE shard = $1 AND position = $2 RETURNING shard;

-- name: post_issue
-- BUDGET -> ISSUED for the vouchers of one chunk in one bucket; the reference makes a second posting impossible.
INSERT INTO transfer (bucket, campaign_no, kind, debit, credit, amount_fen, items, items_hash, reference, booked_at)
VALUES ($1, $2, 'ISSUE', 'BUDGET', 'ISSUED', $3, $4, $5, $6, $7);

-- name: find_clashes
-- Vouchers that carry a request number which another person's voucher carries too, for one partner.
INSERT INTO request_clash (partner_no, out_request_no, first_voucher, second_voucher, seen_at)
SELECT s.partner_no, v.out_request_no, least(v.voucher_id, n.voucher_id), greatest(v.voucher_id, n.voucher_id), $4
  FROM unnest($1::bigint[], $2::bigint[]) AS n(voucher_id, request_key)
  JOIN voucher v ON v.bucket = ANY ($3::smallint[]) AND v.request_key = n.request_key AND v.voucher_id <> n.voucher_id
  JOIN stock s ON s.stock_no = v.stock_no
ON CONFLICT DO NOTHING;
