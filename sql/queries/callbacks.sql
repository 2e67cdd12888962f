-- Queries of issuer/callbacks: the outbox of events for partners, and what operators do with it.

-- ---------------------------------------------------------------- writing events down (the drain)

-- name: stocks_told_of_claims
-- Stocks whose partner wants to hear of claims; none as a rule, and then nothing else is asked.
SELECT k.stock_no FROM callback_subscription c JOIN stock k ON k.partner_no = c.partner_no
 WHERE c.is_active AND 'CLAIMED' = ANY (c.kinds);

-- name: add_claimed
-- Events of claims, in the transaction that adds the vouchers: bucket, number, stock and time of each.
INSERT INTO callback_event (bucket, voucher_id, attempt, kind, partner_no, happened_at, next_at)
SELECT v.bucket, v.voucher_id, 0, 'CLAIMED', k.partner_no, v.claimed_at, v.claimed_at
  FROM unnest($1::smallint[], $2::bigint[], $3::integer[], $4::timestamptz[]) AS v(bucket, voucher_id, stock_no, claimed_at)
  JOIN stock k ON k.stock_no = v.stock_no;

-- name: open_expiry
-- The oldest booked expiry whose vouchers are not all looked at, but for those another sender is at.
SELECT bucket, stock_no FROM callback_expiry WHERE unfolded_at IS NULL ORDER BY expired_at LIMIT 1 FOR UPDATE SKIP LOCKED;

-- name: unfold
-- Events for the next $4 vouchers of the round that an expiry belongs to (bucket $1, stock $2), and how far it is now.
WITH expiry AS MATERIALIZED (
    SELECT x.*, k.round_no, k.partner_no FROM callback_expiry x JOIN stock k USING (stock_no)
     WHERE x.bucket = $1 AND x.stock_no = $2 AND x.unfolded_at IS NULL
), part AS MATERIALIZED (
    SELECT v.voucher_id, v.stock_no FROM expiry x CROSS JOIN LATERAL (
        SELECT w.voucher_id, w.stock_no FROM voucher w
         WHERE w.bucket = $1 AND w.voucher_id > x.unfolded_to AND w.voucher_id < (x.round_no::bigint + 1) << 38
         ORDER BY w.voucher_id LIMIT $4) v
), told AS (
    INSERT INTO callback_event (bucket, voucher_id, attempt, kind, partner_no, happened_at, next_at)
    SELECT $1, p.voucher_id, coalesce(last.attempt, 0), 'EXPIRED', x.partner_no, x.expired_at, x.expired_at
      FROM expiry x JOIN part p ON p.stock_no = x.stock_no
      LEFT JOIN LATERAL (SELECT r.attempt, f.credit FROM redemption r
            LEFT JOIN refund f ON f.bucket = r.bucket AND f.voucher_id = r.voucher_id AND f.attempt = r.attempt
            WHERE r.bucket = $1 AND r.voucher_id = p.voucher_id ORDER BY r.attempt DESC LIMIT 1) last ON true
     WHERE last.attempt IS NULL OR last.credit = 'ISSUED'
)
UPDATE callback_expiry x SET unfolded_to = coalesce((SELECT max(p.voucher_id) FROM part p), x.unfolded_to),
       unfolded_at = CASE WHEN (SELECT count(*) FROM part) < $4 THEN $3::timestamptz END
 WHERE x.bucket = $1 AND x.stock_no = $2 AND x.unfolded_at IS NULL;

-- ---------------------------------------------------------------- sending

-- name: ready
-- Whether the store answers.
SELECT 1;

-- name: subscriptions
-- Whom to send to, where, and with which key: the newest whose time has come ($1 now).
SELECT c.partner_no, p.partner_id, c.url, c.may_be_private, c.retry_after_s, k.serial_no, k.key_material
  FROM callback_subscription c JOIN partner p USING (partner_no)
 CROSS JOIN LATERAL (SELECT n.serial_no, n.key_material FROM callback_key n
        WHERE n.partner_no = c.partner_no AND n.not_before <= $1 ORDER BY n.not_before DESC, n.serial_no LIMIT 1) k
 WHERE c.is_active ORDER BY c.partner_no;

-- name: due_buckets
-- Buckets in which a partner ($1) has events due by now ($2). One look into the index for each, however many wait.
SELECT b::smallint AS bucket FROM city CROSS JOIN LATERAL generate_series(0, buckets - 1) AS b
 CROSS JOIN LATERAL (SELECT FROM callback_event e WHERE e.partner_no = $1 AND e.bucket = b AND e.next_at <= $2 LIMIT 1) AS due;

-- name: first_due
-- Since when the longest waiting event of a partner has been due.
SELECT min(first.next_at) FROM city CROSS JOIN LATERAL generate_series(0, buckets - 1) AS b
 CROSS JOIN LATERAL (SELECT e.next_at FROM callback_event e
        WHERE e.partner_no = $1 AND e.bucket = b AND e.next_at IS NOT NULL ORDER BY e.next_at LIMIT 1) AS first;

-- name: hold_due
-- Due events of a partner ($1) in one bucket ($2), held until the end of the transaction; not those that another sender holds.
SELECT voucher_id, attempt, kind::text AS kind, part FROM callback_event
 WHERE partner_no = $1 AND bucket = $2 AND next_at <= $3 ORDER BY next_at LIMIT $4 FOR UPDATE SKIP LOCKED;

-- name: lease
-- Takes held events of one bucket ($1) at time $2 until time $3, with all there is to tell of each. One that has an earlier
-- event of its voucher still waiting is not taken (is_free false) and put off until that one is due. A statement of its own,
-- so that it sees what was marked before the events were held; what is marked later waits for them (wake): nobody is put
-- off behind an event that is settled. A sender that dies leaves its events leased; they come due again.
WITH due AS MATERIALIZED (
    SELECT h.voucher_id, h.attempt, h.kind::callback_kind AS kind, h.part
      FROM unnest($4::bigint[], $5::smallint[], $6::text[], $7::smallint[]) AS h(voucher_id, attempt, kind, part)
), judged AS MATERIALIZED (
    SELECT d.*, (SELECT max(b.next_at) FROM callback_event b
                  WHERE b.bucket = $1 AND b.voucher_id = d.voucher_id AND (b.attempt, b.kind, b.part) < (d.attempt, d.kind, d.part)) AS behind
      FROM due d
), taken AS (
    UPDATE callback_event e SET next_at = CASE WHEN j.behind IS NULL THEN $3 ELSE greatest(j.behind, $2) END,
           tries = e.tries + (j.behind IS NULL)::integer
      FROM judged j
     WHERE e.bucket = $1 AND e.voucher_id = ANY ($4) AND e.voucher_id = j.voucher_id AND e.attempt = j.attempt AND e.kind = j.kind AND e.part = j.part
    RETURNING e.bucket, e.voucher_id, e.attempt, e.kind, e.part, e.tries, e.happened_at, j.behind IS NULL AS is_free
)
SELECT t.bucket, t.voucher_id, t.attempt, t.kind::text AS kind, t.part, t.tries, t.happened_at, t.is_free,
       k.stock_id, k.face_value_fen, voucher_end(k.valid_until, k.valid_days, v.claimed_at) AS valid_until, v.out_request_no,
       m.merchant_id, r.use_request_no, r.bill_fen, coalesce(f.subsidy_fen, r.subsidy_fen) AS subsidy_fen, f.refund_request_no, f.refund_fen, f.credit::text AS credit
  FROM taken t
  LEFT JOIN voucher v ON v.bucket = $1 AND v.voucher_id = t.voucher_id
  LEFT JOIN stock k ON k.stock_no = v.stock_no
  LEFT JOIN redemption r ON r.bucket = $1 AND r.voucher_id = t.voucher_id AND r.attempt = t.attempt AND t.kind IN ('USED', 'REFUNDED')
  LEFT JOIN merchant m ON m.merchant_no = r.merchant_no
  LEFT JOIN refund f ON f.bucket = $1 AND f.voucher_id = t.voucher_id AND f.attempt = t.attempt AND f.refund_no = t.part + 1
   AND t.kind = 'REFUNDED'
 ORDER BY t.happened_at, t.voucher_id;

-- name: mark
-- What came of attempts in one bucket. A failure counts only for the attempt that it is about: meanwhile someone else may
-- have sent the event, or an operator may have put it back. (ANY: a plan made while the table is empty goes by key, too.)
UPDATE callback_event e SET next_at = o.next_at, delivered_at = o.delivered_at, died_at = o.died_at, last_error = o.error
  FROM unnest($2::bigint[], $3::smallint[], $4::text[], $5::smallint[], $6::timestamptz[], $7::timestamptz[], $8::timestamptz[], $9::text[],
              $10::smallint[]) AS o(voucher_id, attempt, kind, tries, next_at, delivered_at, died_at, error, part)
 WHERE e.bucket = $1 AND e.voucher_id = ANY ($2) AND e.voucher_id = o.voucher_id AND e.attempt = o.attempt AND e.kind = o.kind::callback_kind
   AND e.part = o.part AND e.next_at IS NOT NULL AND (e.tries = o.tries OR o.delivered_at IS NOT NULL);

-- name: wake
-- Lets events of these vouchers go that were never sent: they may have been put off behind one that is settled now, or
-- someone may be about to put them off, and is waited for.
UPDATE callback_event SET next_at = least(next_at, $3)
 WHERE bucket = $1 AND voucher_id = ANY ($2::bigint[]) AND next_at IS NOT NULL AND tries = 0;

-- ---------------------------------------------------------------- operators

-- name: partners
-- Every partner by its name.
SELECT partner_id, partner_no FROM partner ORDER BY partner_id;

-- name: subscribe
-- Begins or changes a partner's subscription.
INSERT INTO callback_subscription (partner_no, url, kinds, may_be_private, retry_after_s, changed_at)
VALUES ($1, $2, $3::text[]::callback_kind[], $4, $5, $6)
ON CONFLICT (partner_no) DO UPDATE SET url = excluded.url, kinds = excluded.kinds, is_active = true,
    may_be_private = excluded.may_be_private, retry_after_s = excluded.retry_after_s, changed_at = excluded.changed_at;

-- name: has_key
-- Whether a partner has a key.
SELECT EXISTS (SELECT FROM callback_key WHERE partner_no = $1);

-- name: add_key
-- A key from a time on.
INSERT INTO callback_key (serial_no, partner_no, key_material, not_before) VALUES ($1, $2, $3, $4);

-- name: unsubscribe
-- Ends a subscription; no row comes back when there was none.
UPDATE callback_subscription SET is_active = false, changed_at = $2 WHERE partner_no = $1 AND is_active RETURNING partner_no;

-- name: listed
-- All subscriptions, ended ones too, with the serial numbers of their keys, the newest first.
SELECT p.partner_id, c.url, c.kinds::text[] AS kinds, c.is_active, c.may_be_private, c.retry_after_s, c.changed_at,
       ARRAY(SELECT k.serial_no FROM callback_key k WHERE k.partner_no = c.partner_no ORDER BY k.not_before DESC) AS serial_nos
  FROM callback_subscription c JOIN partner p USING (partner_no) ORDER BY p.partner_id;

-- name: queues
-- How the events of each subscriber stand.
SELECT p.partner_id, c.is_active, count(e.next_at) AS waiting, count(*) FILTER (WHERE e.next_at <= $1) AS due,
       min(e.happened_at) FILTER (WHERE e.next_at IS NOT NULL) AS oldest_at, count(e.delivered_at) AS delivered,
       count(e.died_at) AS dead, max(e.delivered_at) AS last_delivered_at
  FROM callback_subscription c JOIN partner p USING (partner_no) LEFT JOIN callback_event e USING (partner_no)
 GROUP BY p.partner_id, c.is_active ORDER BY p.partner_id;

-- name: open_expiries
-- Booked expiries whose events are still being written down.
SELECT count(*) FROM callback_expiry WHERE unfolded_at IS NULL;

-- name: dead
-- Dead letters, the newest first; of one partner when $1 is not null.
SELECT p.partner_id, e.voucher_id, e.attempt, e.kind::text AS kind, e.part, e.happened_at, e.died_at, e.tries, e.last_error
  FROM callback_event e JOIN partner p USING (partner_no)
 WHERE e.died_at IS NOT NULL AND ($1::text IS NULL OR p.partner_id = $1) ORDER BY e.died_at DESC, e.voucher_id LIMIT $2;

-- name: redeliver
-- Puts one event back at the start of its schedule, whatever became of it.
UPDATE callback_event SET next_at = $4, tries = 0, delivered_at = NULL, died_at = NULL, last_error = NULL
 WHERE bucket = (SELECT ((($1::bigint >> 28) & 1023) * buckets / 1024)::smallint FROM city)
   AND voucher_id = $1 AND attempt = $2 AND kind = $3::text::callback_kind AND part = $5
RETURNING partner_no;

-- name: redeliver_since
-- Puts a partner's dead letters ($4: delivered events, too) of what happened since a time back at the start of the schedule.
WITH back AS (
    UPDATE callback_event SET next_at = $3, tries = 0, delivered_at = NULL, died_at = NULL, last_error = NULL
     WHERE partner_no = $1 AND happened_at >= $2 AND (died_at IS NOT NULL OR ($4 AND delivered_at IS NOT NULL))
    RETURNING 1
)
SELECT count(*) FROM back;
