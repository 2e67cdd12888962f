-- name: city
-- The constants of this installation.
SELECT buckets, shards FROM city;

-- name: rounds_on_offer
-- Every round with what its campaign says of people.
SELECT r.round_no, r.campaign_no, r.opens_at, r.closes_at, r.per_person_and_partner_limit, r.per_person_limit, c.face_fen_per_person_max
  FROM round r JOIN campaign c USING (campaign_no);

-- name: limits_on_offer
-- Groups and release stages of the rounds that have some.
SELECT r.round_no, coalesce(g.group_nos, '{}') AS group_nos, coalesce(g.group_limits, '{}') AS group_limits,
       coalesce(s.stages_after_s, '{}') AS stages_after_s, coalesce(s.stages_share_bp, '{}') AS stages_share_bp
  FROM round r
  LEFT JOIN (SELECT round_no, array_agg(group_no ORDER BY group_no) AS group_nos,
                    array_agg(per_person_limit ORDER BY group_no) AS group_limits FROM claim_group GROUP BY round_no) g USING (round_no)
  LEFT JOIN (SELECT round_no, array_agg(after_s ORDER BY after_s) AS stages_after_s,
                    array_agg(share_bp ORDER BY after_s) AS stages_share_bp FROM release_stage GROUP BY round_no) s USING (round_no)
 WHERE g.round_no IS NOT NULL OR s.round_no IS NOT NULL;

-- name: stocks_on_offer
-- Every stock as it stands, for the catalogue in memory.
SELECT s.stock_no, s.stock_id, s.round_no, s.partner_no, s.group_no, s.is_granted,
       s.state::text AS state, s.quantity,
       coalesce(i.issued, 0) AS issued, s.adjust_no, s.face_value_fen, s.funded_fen, s.transaction_minimum_fen,
       s.valid_from, s.valid_until, s.valid_days
  FROM stock s LEFT JOIN (SELECT stock_no, sum(issued)::bigint AS issued FROM stock_issued GROUP BY stock_no) i USING (stock_no);

-- name: packs_on_offer
-- Every pack with what is in it.
SELECT p.pack_no, p.pack_id, p.round_no, p.partner_no, p.group_no, p.is_granted,
       array_agg(i.stock_no ORDER BY i.stock_no) AS stock_nos, array_agg(i.quantity ORDER BY i.stock_no) AS quantities
  FROM pack p JOIN pack_item i USING (pack_no) GROUP BY p.pack_no;

-- name: winning_keys
-- The request keys that won vouchers ($1 to $2) of some stocks ($3) or packs ($4), four bytes each, in order.
SELECT CASE WHEN pack_no IS NULL THEN stock_no END AS stock_no, pack_no,
       string_agg(int4send(request_key), ''::bytea ORDER BY request_key) AS keys
  FROM voucher
 WHERE voucher_id BETWEEN $1 AND $2 AND CASE WHEN pack_no IS NULL THEN stock_no = ANY ($3::integer[]) ELSE pack_no = ANY ($4::integer[]) END
 GROUP BY 1, 2;

-- name: ready
-- Whether the store answers.
SELECT 1;

-- name: budget_fen
-- What a campaign may still issue.
SELECT coalesce(sum(credits_fen - debits_fen), 0)::bigint FROM account WHERE bucket = 0 AND campaign_no = $1 AND kind = 'BUDGET';

-- name: has_vouchers
-- Whether any voucher of a round is out ($1 its first number, $2 the first after it).
SELECT EXISTS (SELECT 1 FROM voucher WHERE voucher_id >= $1 AND voucher_id < $2);

-- name: drain_position
-- How far the drain has read the log of a shard.
SELECT position FROM drain_position WHERE shard = $1;

-- name: restart_drain
-- Lets the drain begin a shard's new log, if its position is still $2. 0 and any sequence number mean the start; the
-- text is one that never was, so that nobody who read an old position can move it.
UPDATE drain_position SET position = '0-' || (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
 WHERE shard = $1 AND position = $2 RETURNING shard;

-- name: lock_publishing
-- One worker at a time brings a round into Valkey.
SELECT pg_advisory_xact_lock(4822, $1);

-- name: try_publishing
-- True when nobody else is bringing a round to its shards, or changing its quantities, right now.
SELECT pg_try_advisory_xact_lock(4822, $1);

-- name: vouchers_by_request
-- The vouchers that a partner's request number of one person brought, with how they stand, in the order of their
-- serials: one, or those of a pack; of the newest round, if a later one brought some, too.
SELECT v.voucher_id, v.stock_no, v.pack_no, v.claimed_at, v.out_request_no, use.attempt IS NOT NULL AS was_used, use.credit::text AS credit
  FROM voucher v
  LEFT JOIN LATERAL (SELECT r.attempt, f.credit FROM redemption r
        LEFT JOIN refund f ON f.bucket = r.bucket AND f.voucher_id = r.voucher_id AND f.attempt = r.attempt
        WHERE r.bucket = v.bucket AND r.voucher_id = v.voucher_id ORDER BY r.attempt DESC LIMIT 1) use ON true
 WHERE v.bucket = $1 AND v.request_key & 524287 = $2 & 524287 AND v.request_key = $2 AND v.person = $3 AND v.out_request_no = $4
   AND v.voucher_id >> 38 = (SELECT max(n.voucher_id >> 38) FROM voucher n
                              WHERE n.bucket = $1 AND n.request_key & 524287 = $2 & 524287 AND n.request_key = $2 AND n.person = $3 AND n.out_request_no = $4)
 ORDER BY v.voucher_id;

-- name: voucher_by_id
-- One voucher by its number, with how it stands.
SELECT v.voucher_id, v.stock_no, v.pack_no, v.claimed_at, v.out_request_no, use.attempt IS NOT NULL AS was_used, use.credit::text AS credit
  FROM voucher v
  LEFT JOIN LATERAL (SELECT r.attempt, f.credit FROM redemption r
        LEFT JOIN refund f ON f.bucket = r.bucket AND f.voucher_id = r.voucher_id AND f.attempt = r.attempt
        WHERE r.bucket = v.bucket AND r.voucher_id = v.voucher_id ORDER BY r.attempt DESC LIMIT 1) use ON true
 WHERE v.bucket = $1 AND v.voucher_id = $2;

-- name: vouchers_of_partition
-- All vouchers of a round and a partition ($2 to $3, bucket $1), to rebuild in Valkey what its people won.
SELECT v.voucher_id, v.stock_no, v.pack_no, v.claimed_at, v.person, v.out_request_no
  FROM voucher v WHERE v.bucket = $1 AND v.voucher_id BETWEEN $2 AND $3 ORDER BY v.voucher_id;

-- name: faces_of_partition
-- Face of all vouchers that each person of a partition ($2, bucket $1) claimed in a campaign ($3).
SELECT v.person, sum(s.face_value_fen)::bigint AS face_fen
  FROM round d
  JOIN voucher v ON v.bucket = $1 AND v.voucher_id >= (d.round_no::bigint << 38) + ($2::bigint << 28)
                                  AND v.voucher_id < (d.round_no::bigint << 38) + (($2::bigint + 1) << 28)
  JOIN stock s ON s.stock_no = v.stock_no
 WHERE d.campaign_no = $3
 GROUP BY v.person;

-- name: is_forgotten
-- Whether retention has begun to remove from the claim store who won what in a round.
SELECT EXISTS (SELECT FROM retention_step WHERE round_no = $1 AND step = 'CLAIM_KEYS');

-- name: issued_on_shards
-- Vouchers in the books of some shards ($1), of some stocks ($2).
SELECT shard, stock_no, issued FROM stock_issued WHERE shard = ANY ($1::smallint[]) AND stock_no = ANY ($2::integer[]);
