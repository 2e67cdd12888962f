-- name: shards
-- How many shards the city has; no row before there is a city.
SELECT shards FROM city;

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

-- name: add_issued
-- Counts the vouchers of one chunk: how many of which stock. One drain writes the rows of a shard.
INSERT INTO stock_issued AS i (stock_no, shard, issued)
SELECT n.stock_no, $1, n.issued FROM unnest($2::integer[], $3::bigint[]) AS n(stock_no, issued) ORDER BY n.stock_no
ON CONFLICT (stock_no, shard) DO UPDATE SET issued = i.issued + excluded.issued;

-- name: lock_clashes
-- Drains of two shards that commit at once would not see each other's numbers; from here on they take turns.
SELECT pg_advisory_xact_lock(4823);

-- name: find_clashes
-- Vouchers ($1) that carry a request number which another person's voucher of the round carries too, for one partner.
INSERT INTO request_clash (partner_no, out_request_no, first_voucher, second_voucher, seen_at)
SELECT s.partner_no, v.out_request_no, least(v.voucher_id, w.voucher_id), greatest(v.voucher_id, w.voucher_id), $3
  FROM unnest($1::bigint[]) AS n(voucher_id)
  JOIN voucher w ON w.bucket = ANY ($2::smallint[]) AND w.voucher_id = n.voucher_id
  JOIN stock s ON s.stock_no = w.stock_no
  JOIN voucher v ON v.bucket = ANY ($2::smallint[]) AND v.request_key & 524287 = w.request_key & 524287
   AND v.request_key = w.request_key AND v.person <> w.person
   AND v.voucher_id >> 38 = w.voucher_id >> 38 AND v.out_request_no = w.out_request_no
  JOIN stock o ON o.stock_no = v.stock_no AND o.partner_no = s.partner_no
ON CONFLICT DO NOTHING;
