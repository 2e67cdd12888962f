-- Queries of stack/audit: every statement of what "correct" means (docs/architecture.md).
--
-- A query named after a statement returns the rows that break it: `what` names the row so that a
-- clerk finds it, `violations` is the full count beside it. $1 is how many rows to show. Queries
-- named examined_* count what was looked at. They read rows that are never changed; a checkpoint
-- (account, merchant_day) is read only to be compared. All run in one snapshot, as the auditor.

-- name: prepare_session
-- Gives the sorts and hashes of one audit room, until its transaction ends.
SELECT set_config('work_mem', '128MB', true), set_config('jit', 'off', true)

-- name: taken_at
-- When the snapshot was taken, by the database's clock.
SELECT transaction_timestamp()

-- ---------------------------------------------------------------- how many rows there are

-- name: examined_vouchers
-- All vouchers.
SELECT count(*) FROM voucher

-- name: examined_stocks
-- All stocks.
SELECT count(*) FROM stock

-- name: examined_rounds
-- All rounds.
SELECT count(*) FROM round

-- name: examined_campaigns
-- All campaigns.
SELECT count(*) FROM campaign

-- name: examined_shards
-- All shards.
SELECT coalesce(max(shards), 0)::bigint FROM city

-- name: examined_transfers
-- All transfers.
SELECT count(*) FROM transfer

-- name: examined_issues
-- Transfers that issued vouchers.
SELECT count(*) FROM transfer WHERE kind = 'ISSUE'

-- name: examined_expiries
-- Transfers that moved the money of unused vouchers.
SELECT count(*) FROM transfer WHERE kind = 'EXPIRE'

-- name: examined_redemptions
-- All redemptions.
SELECT count(*) FROM redemption

-- name: examined_refunds
-- All refunds.
SELECT count(*) FROM refund

-- name: examined_tills
-- Redemptions and refunds.
SELECT (SELECT count(*) FROM redemption) + (SELECT count(*) FROM refund)

-- name: examined_postings
-- All rows of money.
SELECT (SELECT count(*) FROM transfer) + (SELECT count(*) FROM redemption) + (SELECT count(*) FROM refund)

-- name: examined_accounts
-- All account rows.
SELECT count(*) FROM account

-- name: examined_merchant_days
-- All days of merchants that were closed.
SELECT count(*) FROM merchant_day

-- ---------------------------------------------------------------- A1: vouchers are born

-- name: a1a_wins_and_vouchers
-- Stocks whose wins in the claim store ($2 stock, $3 wins before the snapshot, $4 wins after it) are not their vouchers.
SELECT format('stock %s: %s vouchers, %s wins in the claim store', coalesce(s.stock_id, w.stock_no::text), coalesce(v.issued, 0),
              CASE WHEN w.fewest = w.most THEN w.most::text ELSE w.fewest || ' to ' || w.most END) AS what,
       count(*) OVER () AS violations
  FROM unnest($2::int[], $3::bigint[], $4::bigint[]) AS w(stock_no, fewest, most)
  LEFT JOIN (SELECT stock_no, count(*) AS issued FROM voucher GROUP BY stock_no) v USING (stock_no)
  LEFT JOIN stock s USING (stock_no)
 WHERE coalesce(v.issued, 0) NOT BETWEEN w.fewest AND w.most OR w.fewest < 0 OR s.stock_no IS NULL
 ORDER BY w.stock_no LIMIT $1

-- name: a1b_within_quantity
-- Stocks that issued more vouchers than they have.
SELECT format('stock %s: %s vouchers of %s', s.stock_id, v.issued, s.quantity) AS what, count(*) OVER () AS violations
  FROM (SELECT stock_no, count(*) AS issued FROM voucher GROUP BY stock_no) v JOIN stock s USING (stock_no)
 WHERE v.issued > s.quantity
 ORDER BY s.stock_no LIMIT $1

-- name: a1c_drained
-- Shards ($2 shard, $3 last entry of its log) that the drain has not read to the end.
SELECT format('shard %s: drained to %s, the log ends at %s', e.shard, coalesce(p.position, 'nothing'), e.ends_at) AS what,
       count(*) OVER () AS violations
  FROM unnest($2::smallint[], $3::text[]) AS e(shard, ends_at) LEFT JOIN drain_position p USING (shard)
 WHERE string_to_array(coalesce(p.position, '0-0'), '-')::numeric[] < string_to_array(e.ends_at, '-')::numeric[]
 ORDER BY e.shard LIMIT $1

-- name: a1d_stock_and_round
-- Vouchers whose stock is unknown or of another round than their number says, or whose serial is zero.
SELECT format('voucher %s: stock %s, round %s by its number, %s by its stock', v.voucher_id, v.stock_no, v.voucher_id >> 38,
              coalesce(s.round_no::text, 'unknown')) AS what, count(*) OVER () AS violations
  FROM voucher v LEFT JOIN stock s USING (stock_no)
 WHERE s.round_no IS DISTINCT FROM v.voucher_id >> 38 OR v.voucher_id & ((1 << 28) - 1) = 0
 ORDER BY v.voucher_id LIMIT $1

-- name: a1e_bucket
-- Vouchers in another bucket than their partition's; that the partition is the person's is counted apart.
SELECT format('voucher %s: in bucket %s, partition %s of %s buckets', v.voucher_id, v.bucket, (v.voucher_id >> 28) & 1023, c.buckets) AS what,
       count(*) OVER () AS violations
  FROM voucher v CROSS JOIN city c
 WHERE v.bucket <> ((v.voucher_id >> 28) & 1023) * c.buckets / 1024
 ORDER BY v.voucher_id LIMIT $1

-- name: vouchers_to_hash
-- What the program recomputes hashes of: partition and request number of every voucher.
SELECT v.voucher_id, v.person, v.request_key, s.partner_no, v.out_request_no FROM voucher v JOIN stock s USING (stock_no)

-- name: a1f_issue_transfers
-- Buckets whose ISSUE transfers are not their vouchers, in number and money.
WITH held AS (
    SELECT v.bucket, d.campaign_no, sum(v.issued) AS items, sum(v.issued * s.funded_fen) AS amount_fen
      FROM (SELECT bucket, stock_no, count(*) AS issued FROM voucher GROUP BY bucket, stock_no) v
      JOIN stock s USING (stock_no) JOIN round d USING (round_no)
     GROUP BY v.bucket, d.campaign_no
), booked AS (
    SELECT bucket, campaign_no, sum(items) AS items, sum(amount_fen) AS amount_fen FROM transfer WHERE kind = 'ISSUE'
     GROUP BY bucket, campaign_no
)
SELECT format('campaign %s, bucket %s: %s vouchers worth %s fen, ISSUE transfers of %s worth %s fen', campaign_no, bucket,
              coalesce(h.items, 0), coalesce(h.amount_fen, 0), coalesce(b.items, 0), coalesce(b.amount_fen, 0)) AS what,
       count(*) OVER () AS violations
  FROM held h FULL JOIN booked b USING (bucket, campaign_no)
 WHERE h.items IS DISTINCT FROM b.items OR h.amount_fen IS DISTINCT FROM b.amount_fen
 ORDER BY campaign_no, bucket LIMIT $1

-- name: a1g_demand_served
-- Stocks with at least as many people asking ($2 stock, $3 demand) as vouchers, and vouchers left over.
SELECT format('stock %s: %s asked, %s of %s vouchers issued', s.stock_id, d.demand, coalesce(v.issued, 0), s.quantity) AS what,
       count(*) OVER () AS violations
  FROM unnest($2::int[], $3::bigint[]) AS d(stock_no, demand) JOIN stock s USING (stock_no)
  LEFT JOIN (SELECT stock_no, count(*) AS issued FROM voucher GROUP BY stock_no) v USING (stock_no)
 WHERE d.demand >= s.quantity AND coalesce(v.issued, 0) < s.quantity
 ORDER BY s.stock_no LIMIT $1

-- name: a1h_round_budget
-- Rounds that gave out more money than their budget.
SELECT format('round %s: vouchers worth %s fen, budget %s fen', d.round_id, v.issued_fen, d.budget_fen) AS what, count(*) OVER () AS violations
  FROM (SELECT s.round_no, sum(c.issued * s.funded_fen) AS issued_fen
          FROM (SELECT stock_no, count(*) AS issued FROM voucher GROUP BY stock_no) c JOIN stock s USING (stock_no)
         GROUP BY s.round_no) v JOIN round d USING (round_no)
 WHERE v.issued_fen > d.budget_fen
 ORDER BY d.round_no LIMIT $1

-- name: a1i_round_open
-- Vouchers claimed while their round was not open.
SELECT format('voucher %s: claimed at %s, round %s open from %s to %s', v.voucher_id, v.claimed_at, d.round_id, d.opens_at, d.closes_at) AS what,
       count(*) OVER () AS violations
  FROM voucher v JOIN stock s USING (stock_no) JOIN round d USING (round_no)
 WHERE v.claimed_at < d.opens_at OR v.claimed_at >= d.closes_at
 ORDER BY v.voucher_id LIMIT $1

-- ---------------------------------------------------------------- A2: people

-- name: a2a_person_limit
-- People with more vouchers of a partner in a round than the round allows.
SELECT format('person %s: %s vouchers of partner %s in round %s, limit %s', h.person, h.held, p.partner_id, d.round_id,
              d.per_person_and_partner_limit) AS what, count(*) OVER () AS violations
  FROM (SELECT v.person, s.round_no, s.partner_no, count(*) AS held FROM voucher v JOIN stock s USING (stock_no)
         GROUP BY v.person, s.round_no, s.partner_no HAVING count(*) > 1) h
  JOIN round d USING (round_no) JOIN partner p USING (partner_no)
 WHERE h.held > d.per_person_and_partner_limit
 ORDER BY d.round_no, h.person LIMIT $1

-- name: a2b_request_once
-- Claim numbers that won more than once, unless it was for two people and the clash is written down.
WITH repeated AS (
    SELECT request_key FROM voucher GROUP BY request_key HAVING count(*) > 1
), won AS (
    SELECT v.voucher_id, v.person, v.out_request_no, s.partner_no, s.round_no
      FROM voucher v JOIN repeated USING (request_key) JOIN stock s USING (stock_no)
)
SELECT format('partner %s, claim %s: vouchers %s and %s', a.partner_no, a.out_request_no, a.voucher_id, b.voucher_id) AS what,
       count(*) OVER () AS violations
  FROM won a JOIN won b ON b.partner_no = a.partner_no AND b.out_request_no = a.out_request_no AND b.voucher_id > a.voucher_id
 WHERE a.person = b.person OR NOT EXISTS (
       SELECT FROM request_clash c WHERE c.partner_no = a.partner_no AND c.out_request_no = a.out_request_no
          AND b.voucher_id IN (c.first_voucher, c.second_voucher))
 ORDER BY a.voucher_id, b.voucher_id LIMIT $1

-- ---------------------------------------------------------------- A3: vouchers are spent

-- name: a3a_one_live_use
-- Vouchers whose uses are not 1, 2, ... n with all but the last given back.
SELECT format('voucher %s: %s uses, last attempt %s, %s of them not given back', voucher_id, uses, last_attempt, kept) AS what,
       count(*) OVER () AS violations
  FROM (SELECT r.voucher_id, count(*) AS uses, max(r.attempt) AS last_attempt,
               count(*) FILTER (WHERE f.credit IS DISTINCT FROM 'ISSUED') AS kept,
               max(r.attempt) FILTER (WHERE f.credit IS DISTINCT FROM 'ISSUED') AS kept_attempt
          FROM redemption r LEFT JOIN refund f USING (bucket, voucher_id, attempt)
         GROUP BY r.voucher_id) u
 WHERE uses <> last_attempt OR kept > 1 OR kept_attempt < last_attempt
 ORDER BY voucher_id LIMIT $1

-- name: a3b_voucher_known
-- Redemptions of a voucher that was not issued, or of another stock than it has.
SELECT format('redemption %s/%s at merchant %s: voucher of stock %s, redeemed as stock %s', r.voucher_id, r.attempt, r.merchant_no,
              coalesce(v.stock_no::text, 'none'), r.stock_no) AS what, count(*) OVER () AS violations
  FROM redemption r LEFT JOIN voucher v USING (bucket, voucher_id)
 WHERE v.stock_no IS DISTINCT FROM r.stock_no
 ORDER BY r.voucher_id, r.attempt LIMIT $1

-- name: a3c_inside_validity
-- Redemptions before or after the stock was valid.
SELECT format('redemption %s/%s at merchant %s: at %s, valid from %s to %s', r.voucher_id, r.attempt, r.merchant_no, r.redeemed_at,
              s.valid_from, s.valid_until) AS what, count(*) OVER () AS violations
  FROM redemption r JOIN stock s USING (stock_no)
 WHERE r.redeemed_at < s.valid_from OR r.redeemed_at > s.valid_until
 ORDER BY r.voucher_id, r.attempt LIMIT $1

-- name: a3d_minimum_spent
-- Redemptions of a bill below the minimum.
SELECT format('redemption %s/%s at merchant %s: bill %s fen, minimum %s fen', r.voucher_id, r.attempt, r.merchant_no, r.bill_fen,
              s.transaction_minimum_fen) AS what, count(*) OVER () AS violations
  FROM redemption r JOIN stock s USING (stock_no)
 WHERE r.bill_fen < s.transaction_minimum_fen
 ORDER BY r.voucher_id, r.attempt LIMIT $1

-- name: a3e_subsidy
-- Redemptions that pay the merchant something else than the stock says.
SELECT format('redemption %s/%s at merchant %s: subsidy %s fen, the stock pays %s fen', r.voucher_id, r.attempt, r.merchant_no,
              r.subsidy_fen, s.funded_fen) AS what, count(*) OVER () AS violations
  FROM redemption r JOIN stock s USING (stock_no)
 WHERE r.subsidy_fen <> s.funded_fen
 ORDER BY r.voucher_id, r.attempt LIMIT $1

-- name: a3f_merchant_fits
-- Redemptions at a merchant of another category, or at a terminal of another merchant.
SELECT format('redemption %s/%s: stock for %s, merchant %s of %s, terminal %s of merchant %s', r.voucher_id, r.attempt, s.category,
              coalesce(m.merchant_id, r.merchant_no::text), coalesce(m.category, 'nothing known'), r.terminal_no,
              coalesce(t.merchant_no::text, 'nobody')) AS what, count(*) OVER () AS violations
  FROM redemption r JOIN stock s USING (stock_no) LEFT JOIN merchant m USING (merchant_no) LEFT JOIN terminal t USING (terminal_no)
 WHERE m.category IS DISTINCT FROM s.category OR t.merchant_no IS DISTINCT FROM r.merchant_no
 ORDER BY r.voucher_id, r.attempt LIMIT $1

-- name: a3g_one_voucher_an_order
-- Orders paid with more than one voucher at a time.
SELECT format('merchant %s, order %s: %s vouchers, first %s', merchant_no, order_no, uses, first_voucher) AS what, count(*) OVER () AS violations
  FROM (SELECT r.merchant_no, r.order_no, count(*) AS uses, min(r.voucher_id) AS first_voucher
          FROM redemption r LEFT JOIN refund f USING (bucket, voucher_id, attempt)
         WHERE f.voucher_id IS NULL
         GROUP BY r.merchant_no, r.order_no HAVING count(*) > 1) o
 ORDER BY merchant_no, order_no LIMIT $1

-- name: a3h_refund_mirrors
-- Refunds that are not the redemption they name, turned around and by the stock's policy.
SELECT format('refund %s/%s at merchant %s: %s fen of %s, bill %s of %s, to %s', f.voucher_id, f.attempt, f.merchant_no, f.subsidy_fen,
              r.subsidy_fen, f.refund_fen, r.bill_fen, f.credit) AS what, count(*) OVER () AS violations
  FROM refund f LEFT JOIN redemption r USING (bucket, voucher_id, attempt) LEFT JOIN stock s ON s.stock_no = f.stock_no
 WHERE r.voucher_id IS NULL OR s.stock_no IS NULL
    OR (f.subsidy_fen, f.refund_fen, f.merchant_no, f.stock_no) <> (r.subsidy_fen, r.bill_fen, r.merchant_no, r.stock_no)
    OR f.refunded_at < r.redeemed_at OR f.booked_on < r.booked_on
    OR (f.credit = 'ISSUED' AND (s.refund_policy <> 'RESTORE' OR f.refunded_at >= s.valid_until))
 ORDER BY f.voucher_id, f.attempt LIMIT $1

-- name: a3i_numbers_once
-- Request numbers of a merchant that redeemed or refunded twice.
SELECT format('merchant %s, %s number %s: %s times, first for voucher %s', merchant_no, verb, number, times, first_voucher) AS what,
       count(*) OVER () AS violations
  FROM (SELECT merchant_no, 'use' AS verb, use_request_no AS number, count(*) AS times, min(voucher_id) AS first_voucher
          FROM redemption GROUP BY merchant_no, use_request_no HAVING count(*) > 1
        UNION ALL
        SELECT merchant_no, 'refund', refund_request_no, count(*), min(voucher_id)
          FROM refund GROUP BY merchant_no, refund_request_no HAVING count(*) > 1) n
 ORDER BY merchant_no, number LIMIT $1

-- ---------------------------------------------------------------- A4: the ledger

-- name: a4a_rows_in_books
-- Rows of money that do not reach the books: nothing leaves one account to enter another.
SELECT what, count(*) OVER () AS violations
  FROM (SELECT format('transfer %s in bucket %s: from %s to %s', transfer_id, bucket, debit, credit) AS what
          FROM transfer WHERE debit = credit OR amount_fen <= 0
        UNION ALL
        SELECT format('redemption %s/%s: stock %s is of no campaign', r.voucher_id, r.attempt, r.stock_no)
          FROM redemption r LEFT JOIN (stock JOIN round USING (round_no)) s USING (stock_no) WHERE s.stock_no IS NULL
        UNION ALL
        SELECT format('refund %s/%s: stock %s is of no campaign', f.voucher_id, f.attempt, f.stock_no)
          FROM refund f LEFT JOIN (stock JOIN round USING (round_no)) s USING (stock_no) WHERE s.stock_no IS NULL) AS lost
 ORDER BY what LIMIT $1

-- name: a4b_balances
-- Accounts whose balance, as the city reads it, is not the sum of all postings.
WITH side AS (
    SELECT debit_bucket AS bucket, campaign_no, debit_merchant_no AS merchant_no, debit AS kind, sum(amount_fen) AS debits_fen, 0 AS credits_fen
      FROM posting GROUP BY debit_bucket, campaign_no, debit_merchant_no, debit
    UNION ALL
    SELECT credit_bucket, campaign_no, credit_merchant_no, credit, 0, sum(amount_fen)
      FROM posting GROUP BY credit_bucket, campaign_no, credit_merchant_no, credit
), recomputed AS (
    SELECT bucket, campaign_no, merchant_no, kind, sum(debits_fen) AS debits_fen, sum(credits_fen) AS credits_fen
      FROM side GROUP BY bucket, campaign_no, merchant_no, kind
)
SELECT format('%s of campaign %s, merchant %s, bucket %s: reads %s debit %s credit, postings %s debit %s credit (fen)',
              kind, campaign_no, merchant_no, bucket, coalesce(b.debits_fen, 0), coalesce(b.credits_fen, 0),
              coalesce(r.debits_fen, 0), coalesce(r.credits_fen, 0)) AS what, count(*) OVER () AS violations
  FROM recomputed r FULL JOIN balance b USING (bucket, campaign_no, merchant_no, kind)
 WHERE coalesce(r.debits_fen, 0) <> coalesce(b.debits_fen, 0) OR coalesce(r.credits_fen, 0) <> coalesce(b.credits_fen, 0)
 ORDER BY campaign_no, kind, merchant_no, bucket LIMIT $1

-- name: a4c_checkpoint
-- Account rows that are not the sum of all transfers and of the rows of closed days.
WITH closed AS (
    SELECT bucket, max(day) AS day FROM day_close GROUP BY bucket
), till AS (
    SELECT r.bucket, d.campaign_no, r.merchant_no, sum(r.subsidy_fen) AS redeemed_fen, 0 AS refunded_fen, 0 AS restored_fen
      FROM redemption r JOIN closed c ON c.bucket = r.bucket AND r.booked_on <= c.day JOIN stock USING (stock_no) JOIN round d USING (round_no)
     GROUP BY r.bucket, d.campaign_no, r.merchant_no
    UNION ALL
    SELECT f.bucket, d.campaign_no, f.merchant_no, 0, sum(f.subsidy_fen), coalesce(sum(f.subsidy_fen) FILTER (WHERE f.credit = 'ISSUED'), 0)
      FROM refund f JOIN closed c ON c.bucket = f.bucket AND f.booked_on <= c.day JOIN stock USING (stock_no) JOIN round d USING (round_no)
     GROUP BY f.bucket, d.campaign_no, f.merchant_no
), side AS (
    SELECT account_bucket(debit, bucket) AS bucket, campaign_no, account_merchant(debit, merchant_no) AS merchant_no, debit AS kind,
           amount_fen AS debits_fen, 0 AS credits_fen FROM transfer
    UNION ALL SELECT account_bucket(credit, bucket), campaign_no, account_merchant(credit, merchant_no), credit, 0, amount_fen FROM transfer
    UNION ALL SELECT bucket, campaign_no, 0, 'ISSUED', redeemed_fen, restored_fen FROM till
    UNION ALL SELECT bucket, campaign_no, merchant_no, 'PAYABLE', refunded_fen, redeemed_fen FROM till
    UNION ALL SELECT 0, campaign_no, 0, 'RETURNED', 0, refunded_fen - restored_fen FROM till
), recomputed AS (
    SELECT bucket, campaign_no, merchant_no, kind, sum(debits_fen) AS debits_fen, sum(credits_fen) AS credits_fen
      FROM side GROUP BY bucket, campaign_no, merchant_no, kind
)
SELECT format('%s of campaign %s, merchant %s, bucket %s: checkpoint %s debit %s credit, rows %s debit %s credit (fen)',
              kind, campaign_no, merchant_no, bucket, coalesce(a.debits_fen, 0), coalesce(a.credits_fen, 0),
              coalesce(r.debits_fen, 0), coalesce(r.credits_fen, 0)) AS what, count(*) OVER () AS violations
  FROM recomputed r FULL JOIN account a USING (bucket, campaign_no, merchant_no, kind)
 WHERE coalesce(r.debits_fen, 0) <> coalesce(a.debits_fen, 0) OR coalesce(r.credits_fen, 0) <> coalesce(a.credits_fen, 0)
 ORDER BY campaign_no, kind, merchant_no, bucket LIMIT $1

-- name: a4d_issued_is_live
-- Buckets whose ISSUED balance is not the money of their live vouchers.
WITH used AS (
    SELECT r.bucket, r.stock_no, count(*) AS used
      FROM redemption r LEFT JOIN refund f USING (bucket, voucher_id, attempt)
     WHERE f.credit IS DISTINCT FROM 'ISSUED' GROUP BY r.bucket, r.stock_no
), stocked AS (
    SELECT bucket, stock_no, count(*) AS issued FROM voucher GROUP BY bucket, stock_no
), live AS (
    SELECT v.bucket, d.campaign_no, sum((v.issued - coalesce(u.used, 0)) * s.funded_fen) AS live_fen
      FROM stocked v LEFT JOIN used u USING (bucket, stock_no) JOIN stock s USING (stock_no) JOIN round d USING (round_no)
     WHERE NOT EXISTS (SELECT FROM transfer t WHERE t.bucket = v.bucket AND t.kind = 'EXPIRE' AND t.reference = 'stock ' || v.stock_no)
     GROUP BY v.bucket, d.campaign_no
), booked AS (
    SELECT bucket, campaign_no, sum(issued_fen) AS issued_fen
      FROM (SELECT debit_bucket AS bucket, campaign_no, -sum(amount_fen) AS issued_fen FROM posting WHERE debit = 'ISSUED' GROUP BY 1, 2
            UNION ALL
            SELECT credit_bucket, campaign_no, sum(amount_fen) FROM posting WHERE credit = 'ISSUED' GROUP BY 1, 2) AS side
     GROUP BY bucket, campaign_no
)
SELECT format('campaign %s, bucket %s: ISSUED %s fen, live vouchers %s fen', campaign_no, bucket, coalesce(b.issued_fen, 0),
              coalesce(l.live_fen, 0)) AS what, count(*) OVER () AS violations
  FROM live l FULL JOIN booked b USING (bucket, campaign_no)
 WHERE coalesce(b.issued_fen, 0) <> coalesce(l.live_fen, 0)
 ORDER BY campaign_no, bucket LIMIT $1

-- name: a4e_expired_unused
-- EXPIRE transfers that did not move exactly the unused vouchers of their stock.
WITH used AS (
    SELECT r.bucket, r.stock_no, count(*) AS used
      FROM redemption r LEFT JOIN refund f USING (bucket, voucher_id, attempt)
     WHERE f.credit IS DISTINCT FROM 'ISSUED' GROUP BY r.bucket, r.stock_no
), stocked AS (
    SELECT bucket, stock_no, count(*) AS issued FROM voucher GROUP BY bucket, stock_no
)
SELECT format('transfer %s in bucket %s (%s): moved %s vouchers worth %s fen, unused were %s', t.transfer_id, t.bucket, t.reference, t.items,
              t.amount_fen, coalesce(v.issued, 0) - coalesce(u.used, 0)) AS what, count(*) OVER () AS violations
  FROM transfer t LEFT JOIN stock s ON t.reference = 'stock ' || s.stock_no LEFT JOIN round d USING (round_no)
  LEFT JOIN stocked v ON v.bucket = t.bucket AND v.stock_no = s.stock_no
  LEFT JOIN used u ON u.bucket = t.bucket AND u.stock_no = s.stock_no
 WHERE t.kind = 'EXPIRE'
   AND (t.items <> coalesce(v.issued, 0) - coalesce(u.used, 0) OR t.amount_fen IS DISTINCT FROM t.items * s.funded_fen
        OR t.campaign_no IS DISTINCT FROM d.campaign_no OR t.booked_at <= s.valid_until)
 ORDER BY t.bucket, t.transfer_id LIMIT $1

-- name: a4f_merchant_days
-- Closed days of merchants that are not the sum of their rows; also shows a row booked after its day was closed.
WITH closed AS (
    SELECT bucket, max(day) AS day FROM day_close GROUP BY bucket
), till AS (
    SELECT r.bucket, d.campaign_no, r.merchant_no, r.booked_on, count(*) AS redeemed_count, sum(r.subsidy_fen) AS redeemed_fen,
           sum(r.bill_fen) AS bills_fen, 0 AS refunded_count, 0 AS refunded_fen, 0 AS restored_fen
      FROM redemption r JOIN closed c ON c.bucket = r.bucket AND r.booked_on <= c.day JOIN stock USING (stock_no) JOIN round d USING (round_no)
     GROUP BY r.bucket, d.campaign_no, r.merchant_no, r.booked_on
    UNION ALL
    SELECT f.bucket, d.campaign_no, f.merchant_no, f.booked_on, 0, 0, 0, count(*), sum(f.subsidy_fen),
           coalesce(sum(f.subsidy_fen) FILTER (WHERE f.credit = 'ISSUED'), 0)
      FROM refund f JOIN closed c ON c.bucket = f.bucket AND f.booked_on <= c.day JOIN stock USING (stock_no) JOIN round d USING (round_no)
     GROUP BY f.bucket, d.campaign_no, f.merchant_no, f.booked_on
), recomputed AS (
    SELECT bucket, campaign_no, merchant_no, booked_on AS day, sum(redeemed_count) AS redeemed_count, sum(redeemed_fen) AS redeemed_fen,
           sum(bills_fen) AS bills_fen, sum(refunded_count) AS refunded_count, sum(refunded_fen) AS refunded_fen, sum(restored_fen) AS restored_fen
      FROM till GROUP BY bucket, campaign_no, merchant_no, booked_on
)
SELECT format('merchant %s on %s, campaign %s, bucket %s: folded %s uses %s fen and %s refunds %s fen, rows %s uses %s fen and %s refunds %s fen',
              merchant_no, day, campaign_no, bucket, coalesce(m.redeemed_count, 0), coalesce(m.redeemed_fen, 0),
              coalesce(m.refunded_count, 0), coalesce(m.refunded_fen, 0), coalesce(r.redeemed_count, 0), coalesce(r.redeemed_fen, 0),
              coalesce(r.refunded_count, 0), coalesce(r.refunded_fen, 0)) AS what, count(*) OVER () AS violations
  FROM recomputed r FULL JOIN merchant_day m USING (bucket, campaign_no, merchant_no, day)
 WHERE (coalesce(r.redeemed_count, -1), coalesce(r.redeemed_fen, -1), r.bills_fen, r.refunded_count, r.refunded_fen, r.restored_fen)
       IS DISTINCT FROM (m.redeemed_count::numeric, m.redeemed_fen::numeric, m.bills_fen::numeric, m.refunded_count::numeric,
                         m.refunded_fen::numeric, m.restored_fen::numeric)
 ORDER BY day, merchant_no, campaign_no, bucket LIMIT $1

-- name: a4g_booked_day
-- Redemptions and refunds booked on another day than the city's day they happened on, while that day was still open.
SELECT format('%s %s/%s at merchant %s: at %s, booked on %s', verb, voucher_id, attempt, merchant_no, at, booked_on) AS what,
       count(*) OVER () AS violations
  FROM (SELECT 'redemption' AS verb, bucket, voucher_id, attempt, merchant_no, redeemed_at AS at, booked_on FROM redemption
        UNION ALL
        SELECT 'refund', bucket, voucher_id, attempt, merchant_no, refunded_at, booked_on FROM refund) AS till
 WHERE booked_on <> (at AT TIME ZONE 'Asia/Shanghai')::date
   AND (booked_on < (at AT TIME ZONE 'Asia/Shanghai')::date
        OR NOT EXISTS (SELECT FROM day_close c WHERE c.bucket = till.bucket AND c.day = till.booked_on - 1))
 ORDER BY voucher_id, attempt, verb LIMIT $1

-- ---------------------------------------------------------------- A5: the fund

-- name: a5a_fund_identity
-- Campaigns whose fund is not what became of it, as the city reads its balances.
SELECT format('campaign %s: CITY_FUND %s fen, everything it became %s fen', c.campaign_id, coalesce(b.fund_fen, 0), coalesce(b.became_fen, 0)) AS what,
       count(*) OVER () AS violations
  FROM campaign c LEFT JOIN (
       SELECT campaign_no, sum(balance_fen) FILTER (WHERE kind = 'CITY_FUND') AS fund_fen,
              sum(balance_fen) FILTER (WHERE kind <> 'CITY_FUND') AS became_fen
         FROM balance GROUP BY campaign_no) b USING (campaign_no)
 WHERE coalesce(b.fund_fen, 0) <> coalesce(b.became_fen, 0)
 ORDER BY c.campaign_no LIMIT $1

-- name: a5b_not_below_zero
-- Accounts below zero, and merchants that owe the city more than agreed.
SELECT what, count(*) OVER () AS violations
  FROM (SELECT format('%s of campaign %s, merchant %s, bucket %s: %s fen', kind, campaign_no, merchant_no, bucket, balance_fen) AS what
          FROM balance WHERE balance_fen < 0 AND kind <> 'PAYABLE'
        UNION ALL
        SELECT format('PAYABLE of merchant %s, bucket %s: %s fen, %s fen below zero agreed', b.merchant_no, b.bucket, b.balance_fen,
                      coalesce(m.refund_debt_fen_max, 0))
          FROM (SELECT merchant_no, bucket, sum(balance_fen) AS balance_fen FROM balance WHERE kind = 'PAYABLE' GROUP BY merchant_no, bucket) b
          LEFT JOIN merchant m USING (merchant_no)
         WHERE b.balance_fen < -coalesce(m.refund_debt_fen_max, 0)) AS below
 ORDER BY what LIMIT $1

-- name: a5c_fund_as_decided
-- Campaigns into which more money was put than the city decided.
SELECT format('campaign %s: funded with %s fen, decided were %s fen', c.campaign_id, t.funded_fen, c.fund_fen) AS what, count(*) OVER () AS violations
  FROM campaign c JOIN (SELECT campaign_no, sum(amount_fen) AS funded_fen FROM transfer WHERE kind = 'FUND' GROUP BY campaign_no) t
       USING (campaign_no)
 WHERE t.funded_fen > c.fund_fen
 ORDER BY c.campaign_no LIMIT $1
