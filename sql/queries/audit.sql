-- Queries of stack/audit: every statement of what "correct" means (docs/architecture.md).
--
-- A query named after a statement returns the rows that break it: `what` names the row so that a
-- clerk finds it, `violations` is the full count beside it. $1 is how many rows to show. Queries
-- named examined_* count what was looked at. They read rows that are never changed; a checkpoint
-- (account, merchant_day) is read only to be compared. All run in one snapshot, as the auditor.

-- name: refresh_statistics
-- Tells the planner how many rows there are now; before the snapshot is taken.
SELECT refresh_statistics()

-- name: open_room
-- Takes the snapshot, gives the sorts and hashes of one audit room, and answers when that was, by the database's clock. From
-- here on tables of rounds are read with those in the archive (read_books), which nobody adds to meanwhile.
-- Nested loops are kept out: over tables that were never analysed the planner takes millions of rows for a few.
SELECT transaction_timestamp(), set_config('work_mem', '128MB', true), set_config('jit', 'off', true),
       set_config('enable_nestloop', 'off', true), read_books()

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

-- name: round_stocks
-- The stocks of each round.
SELECT round_no, stock_no FROM stock ORDER BY round_no, stock_no

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
 WHERE string_to_array(coalesce(nullif(p.position, '0'), '0-0'), '-')::numeric[] < string_to_array(e.ends_at, '-')::numeric[]
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

-- name: vouchers_to_hash
-- Every voucher with what the program hashes: the person's partition, and the key of the partner's claim number. Not of
-- rounds that were unlinked from people: they have neither any more.
SELECT v.voucher_id, v.person, v.request_key, s.partner_no, v.out_request_no FROM voucher v JOIN stock s USING (stock_no)
 WHERE v.voucher_id >> 38 <> ALL (ARRAY(SELECT round_no FROM retention_step WHERE step = 'UNLINK'))

-- name: examined_chunks
-- Chunks whose vouchers can be told: campaigns with no two rounds open at once.
SELECT count(*) FROM transfer t
 WHERE t.kind = 'ISSUE' AND NOT EXISTS (
       SELECT FROM round a JOIN round b ON b.campaign_no = a.campaign_no AND b.round_no <> a.round_no
          AND b.opens_at < a.closes_at AND a.opens_at < b.closes_at WHERE a.campaign_no = t.campaign_no)

-- name: a1k_chunk_hashes
-- ISSUE transfers whose hash is not that of the vouchers whose turn it was in the log of their shard, in number order.
WITH plain AS (
    SELECT campaign_no FROM campaign c WHERE NOT EXISTS (
           SELECT FROM round a JOIN round b ON b.campaign_no = a.campaign_no AND b.round_no <> a.round_no
              AND b.opens_at < a.closes_at AND a.opens_at < b.closes_at WHERE a.campaign_no = c.campaign_no)
), chunk AS (
    SELECT t.bucket, t.campaign_no, t.transfer_id, t.items, t.items_hash, t.reference, split_part(t.reference, ' ', 2) AS shard,
           sum(t.items) OVER turn - t.items + 1 AS first, row_number() OVER turn AS chunk_no
      FROM transfer t JOIN plain USING (campaign_no) WHERE t.kind = 'ISSUE'
    WINDOW turn AS (PARTITION BY t.bucket, t.campaign_no, split_part(t.reference, ' ', 2)
                    ORDER BY string_to_array(split_part(t.reference, ' ', 4), '-')::numeric[])
), edges AS (
    SELECT bucket, campaign_no, shard, array_agg(first::bigint ORDER BY chunk_no) AS firsts FROM chunk GROUP BY bucket, campaign_no, shard
), logged AS (
    SELECT v.bucket, d.campaign_no, (((v.voucher_id >> 28) & 1023) * c.shards / 1024)::text AS shard, v.voucher_id,
           row_number() OVER (PARTITION BY v.bucket, d.campaign_no, ((v.voucher_id >> 28) & 1023) * c.shards / 1024
                              ORDER BY d.opens_at, v.voucher_id & ((1 << 28) - 1)) AS turn
      FROM voucher v JOIN stock s USING (stock_no) JOIN round d USING (round_no) CROSS JOIN city c
), recomputed AS (
    SELECT l.bucket, l.campaign_no, l.shard, width_bucket(l.turn, e.firsts) AS chunk_no, count(*) AS items,
           sha256(string_agg(int8send(l.voucher_id), ''::bytea ORDER BY l.voucher_id)) AS items_hash
      FROM logged l JOIN edges e USING (bucket, campaign_no, shard)
     GROUP BY l.bucket, l.campaign_no, l.shard, width_bucket(l.turn, e.firsts)
)
SELECT format('transfer %s in bucket %s (%s): %s vouchers, hash %s', k.transfer_id, k.bucket, k.reference, k.items,
              left(coalesce(encode(k.items_hash, 'hex'), 'none'), 12)) AS what, count(*) OVER () AS violations
  FROM chunk k LEFT JOIN recomputed r USING (bucket, campaign_no, shard, chunk_no)
 WHERE k.items IS DISTINCT FROM r.items OR k.items_hash IS DISTINCT FROM r.items_hash
 ORDER BY k.bucket, k.transfer_id LIMIT $1

-- name: examined_edits
-- Edits of quantities that were carried out.
SELECT count(*) FROM stock_edit WHERE state = 'DONE'

-- name: examined_approvals
-- Approvals of stocks.
SELECT count(*) FROM stock_move WHERE verb = 'APPROVE'

-- name: examined_rollovers
-- Rollovers.
SELECT count(*) FROM rollover

-- name: a1n_edits_make_the_quantity
-- Edits of a quantity that do not begin where the one before ended, or quantities that no edit made.
SELECT format('stock %s, edit %s: from %s to %s, then %s', s.stock_id, e.edit_no, e.current_quantity, e.target_quantity, e.next_quantity) AS what,
       count(*) OVER () AS violations
  FROM (SELECT e.*, coalesce(lead(e.current_quantity) OVER (PARTITION BY e.stock_no ORDER BY e.edit_no), s.quantity) AS next_quantity
          FROM stock_edit e JOIN stock s USING (stock_no) WHERE e.state = 'DONE') e JOIN stock s USING (stock_no)
 WHERE e.target_quantity <> e.next_quantity
 ORDER BY e.edit_no LIMIT $1

-- name: a1o_two_people_approve
-- Stocks approved by whoever had submitted them, or that nobody had submitted.
SELECT format('stock %s: approved by %s, submitted by %s', s.stock_id, a.moved_by, coalesce(b.moved_by, 'nobody')) AS what,
       count(*) OVER () AS violations
  FROM stock_move a JOIN stock s USING (stock_no)
  LEFT JOIN LATERAL (SELECT m.moved_by FROM stock_move m WHERE m.stock_no = a.stock_no AND m.verb = 'SUBMIT' AND m.move_no < a.move_no
                      ORDER BY m.move_no DESC LIMIT 1) b ON true
 WHERE a.verb = 'APPROVE' AND (b.moved_by IS NULL OR lower(b.moved_by) = lower(a.moved_by))
 ORDER BY a.move_no LIMIT $1

-- name: a1p_rollovers_add_up
-- Rollovers whose money is not that of the vouchers they carried and of the returns they used.
SELECT format('rollover %s: carried %s fen, vouchers worth %s; returned %s fen, returns of %s', r.rollover_no, r.carried_fen, c.fen, r.returned_fen, f.fen) AS what,
       count(*) OVER () AS violations
  FROM rollover r
 CROSS JOIN LATERAL (SELECT coalesce(sum(x.units * s.funded_fen), 0) AS fen FROM rollover_stock x JOIN stock s ON s.stock_no = x.to_stock_no
                      WHERE x.rollover_no = r.rollover_no) c
 CROSS JOIN LATERAL (SELECT coalesce(sum(t.amount_fen), 0) AS fen FROM rollover_return x JOIN fund_return t USING (campaign_no, reference)
                      WHERE x.rollover_no = r.rollover_no AND t.credit = 'BUDGET') f
 WHERE r.carried_fen <> c.fen OR r.returned_fen <> f.fen
 ORDER BY r.rollover_no LIMIT $1

-- ---------------------------------------------------------------- A2: people

-- name: a1l_stock_counted
-- Stocks and shards whose vouchers are not as many as the books count, in which the drain adds up what it carried.
SELECT format('stock %s, shard %s: %s vouchers, counted %s', coalesce(s.stock_id, stock_no::text), shard, coalesce(v.issued, 0),
              coalesce(i.issued, 0)) AS what, count(*) OVER () AS violations
  FROM (SELECT v.stock_no, (((v.voucher_id >> 28) & 1023) * c.shards / 1024)::smallint AS shard, count(*) AS issued
          FROM voucher v CROSS JOIN city c GROUP BY 1, 2) v
  FULL JOIN stock_issued i USING (stock_no, shard) LEFT JOIN stock s USING (stock_no)
 WHERE v.issued IS DISTINCT FROM i.issued
 ORDER BY stock_no, shard LIMIT $1

-- name: examined_packs
-- Claims of packs.
SELECT count(*) FROM (SELECT DISTINCT person, out_request_no, pack_no FROM voucher WHERE pack_no IS NOT NULL) c

-- name: a1m_packs_whole
-- Claims of packs that brought other vouchers than the pack holds.
WITH given AS (
    SELECT person, out_request_no, pack_no, stock_no, count(*) AS quantity FROM voucher WHERE pack_no IS NOT NULL
     GROUP BY person, out_request_no, pack_no, stock_no
), claim AS (
    SELECT DISTINCT person, out_request_no, pack_no FROM given
), promised AS (
    SELECT c.person, c.out_request_no, c.pack_no, i.stock_no, i.quantity FROM claim c JOIN pack_item i USING (pack_no)
)
SELECT format('pack %s, claim %s: %s vouchers of stock %s, promised %s', coalesce(p.pack_id, pack_no::text), out_request_no,
              coalesce(g.quantity, 0), stock_no, coalesce(q.quantity, 0)) AS what, count(*) OVER () AS violations
  FROM given g FULL JOIN promised q USING (person, out_request_no, pack_no, stock_no) LEFT JOIN pack p USING (pack_no)
 WHERE g.quantity IS DISTINCT FROM q.quantity::bigint
 ORDER BY pack_no, out_request_no, stock_no LIMIT $1

-- ---------------------------------------------------------------- A2: people

-- name: a2a_person_limit
-- People with more claims of a partner in a round than the round allows; a pack is one claim.
SELECT format('person %s: %s vouchers of partner %s in round %s, limit %s', h.person, h.held, p.partner_id, d.round_id,
              d.per_person_and_partner_limit) AS what, count(*) OVER () AS violations
  FROM (SELECT v.person, s.round_no, s.partner_no,
               count(*) FILTER (WHERE v.pack_no IS NULL) + count(DISTINCT v.out_request_no) FILTER (WHERE v.pack_no IS NOT NULL) AS held
          FROM voucher v JOIN stock s USING (stock_no)
         GROUP BY v.person, s.round_no, s.partner_no HAVING count(*) > 1) h
  JOIN round d USING (round_no) JOIN partner p USING (partner_no)
 WHERE h.held > d.per_person_and_partner_limit
 ORDER BY d.round_no, h.person LIMIT $1

-- name: a2b_request_once
-- Claim numbers that won more than once in a round, unless it was for two people and the clash is written down. The
-- vouchers of a pack came by one number.
WITH repeated AS (
    SELECT request_key FROM voucher GROUP BY request_key HAVING count(*) > 1
), won AS (
    SELECT v.voucher_id, v.person, v.pack_no, v.out_request_no, s.partner_no, s.round_no
      FROM voucher v JOIN repeated USING (request_key) JOIN stock s USING (stock_no)
)
SELECT format('partner %s, claim %s: vouchers %s and %s', a.partner_no, a.out_request_no, a.voucher_id, b.voucher_id) AS what,
       count(*) OVER () AS violations
  FROM won a JOIN won b ON b.partner_no = a.partner_no AND b.out_request_no = a.out_request_no AND b.round_no = a.round_no
   AND b.voucher_id > a.voucher_id
 WHERE CASE WHEN a.person = b.person THEN a.pack_no IS NULL OR a.pack_no IS DISTINCT FROM b.pack_no ELSE NOT EXISTS (
       SELECT FROM request_clash c WHERE c.partner_no = a.partner_no AND c.out_request_no = a.out_request_no
          AND c.first_voucher = a.voucher_id AND c.second_voucher = b.voucher_id) END
 ORDER BY a.voucher_id, b.voucher_id LIMIT $1

-- name: examined_limited
-- Vouchers of rounds and campaigns that limit people over all partners, or have groups.
SELECT count(*) FROM voucher v JOIN stock s USING (stock_no) JOIN round d USING (round_no) JOIN campaign c USING (campaign_no)
 WHERE d.per_person_limit IS NOT NULL OR c.face_fen_per_person_max IS NOT NULL
    OR EXISTS (SELECT FROM claim_group g WHERE g.round_no = d.round_no)

-- name: a2c_wider_limits
-- People over a limit of a round over all partners, of a group, or of a campaign's face value. A pack is one claim.
WITH claim AS (
    SELECT v.person, s.round_no, CASE WHEN v.pack_no IS NULL THEN s.group_no ELSE p.group_no END AS group_no
      FROM voucher v JOIN stock s USING (stock_no) LEFT JOIN pack p ON p.pack_no = v.pack_no
     GROUP BY v.person, s.round_no, 3, v.out_request_no, v.pack_no, CASE WHEN v.pack_no IS NULL THEN v.voucher_id END
), over AS (
    SELECT d.round_no, format('person %s: %s claims in round %s, limit %s', c.person, count(*), d.round_id, d.per_person_limit) AS what
      FROM claim c JOIN round d USING (round_no) WHERE d.per_person_limit IS NOT NULL
     GROUP BY c.person, d.round_no HAVING count(*) > d.per_person_limit
    UNION ALL
    SELECT g.round_no, format('person %s: %s claims of group %s, limit %s', c.person, count(*), g.group_id, g.per_person_limit)
      FROM claim c
      JOIN claim_group g USING (round_no, group_no)
     GROUP BY c.person, g.round_no, g.group_no HAVING count(*) > g.per_person_limit
    UNION ALL
    SELECT min(d.round_no), format('person %s: %s fen of campaign %s, limit %s', v.person, sum(s.face_value_fen), c.campaign_id, c.face_fen_per_person_max)
      FROM voucher v JOIN stock s USING (stock_no) JOIN round d USING (round_no) JOIN campaign c USING (campaign_no)
     WHERE c.face_fen_per_person_max IS NOT NULL
     GROUP BY v.person, c.campaign_no HAVING sum(s.face_value_fen) > c.face_fen_per_person_max
)
SELECT what, count(*) OVER () AS violations FROM over ORDER BY round_no, what LIMIT $1

-- ---------------------------------------------------------------- A3: vouchers are spent

-- name: a3a_one_live_use
-- Vouchers whose attempts (uses, and holds that never became one) are not 1, 2, ... n, or of whose uses another than the
-- last was not given back.
WITH attempt AS (
    SELECT r.voucher_id, r.attempt, NOT EXISTS (SELECT FROM refund f
                WHERE f.bucket = r.bucket AND f.voucher_id = r.voucher_id AND f.attempt = r.attempt AND f.credit = 'ISSUED') AS is_kept
      FROM redemption r
    UNION ALL
    SELECT h.voucher_id, h.attempt, false FROM hold h
     WHERE NOT EXISTS (SELECT FROM redemption r WHERE r.bucket = h.bucket AND r.voucher_id = h.voucher_id AND r.attempt = h.attempt)
)
SELECT format('voucher %s: %s attempts, the last is %s, %s of them not given back', voucher_id, attempts, last_attempt, kept) AS what,
       count(*) OVER () AS violations
  FROM (SELECT voucher_id, count(*) AS attempts, max(attempt) AS last_attempt, count(*) FILTER (WHERE is_kept) AS kept,
               max(attempt) FILTER (WHERE is_kept) AS kept_attempt
          FROM attempt GROUP BY voucher_id) u
 WHERE attempts <> last_attempt OR kept > 1 OR kept_attempt < last_attempt
 ORDER BY voucher_id LIMIT $1

-- name: a3b_voucher_known
-- Redemptions of a voucher that was not issued, or of another stock than it has.
SELECT format('redemption %s/%s at merchant %s: voucher of stock %s, redeemed as stock %s', r.voucher_id, r.attempt, r.merchant_no,
              coalesce(v.stock_no::text, 'none'), r.stock_no) AS what, count(*) OVER () AS violations
  FROM redemption r LEFT JOIN voucher v USING (bucket, voucher_id)
 WHERE v.stock_no IS DISTINCT FROM r.stock_no
 ORDER BY r.voucher_id, r.attempt LIMIT $1

-- name: a3c_inside_validity
-- Redemptions before or after the voucher was valid.
SELECT format('redemption %s/%s at merchant %s: at %s, valid from %s to %s', r.voucher_id, r.attempt, r.merchant_no, r.redeemed_at,
              s.valid_from, voucher_end(s.valid_until, s.valid_days, v.claimed_at)) AS what, count(*) OVER () AS violations
  FROM redemption r JOIN voucher v USING (bucket, voucher_id) JOIN stock s ON s.stock_no = r.stock_no
 WHERE r.redeemed_at < s.valid_from OR r.redeemed_at >= voucher_end(s.valid_until, s.valid_days, v.claimed_at)
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
-- Redemptions at a shop of another category (the store's, where a terminal is in one), or at a terminal of another merchant.
SELECT format('redemption %s/%s: stock for %s, merchant %s of %s, terminal %s of merchant %s', r.voucher_id, r.attempt, s.category,
              coalesce(m.merchant_id, r.merchant_no::text), coalesce(e.category, m.category, 'nothing known'), r.terminal_no,
              coalesce(t.merchant_no::text, 'nobody')) AS what, count(*) OVER () AS violations
  FROM redemption r JOIN stock s USING (stock_no) LEFT JOIN merchant m USING (merchant_no) LEFT JOIN terminal t USING (terminal_no)
  LEFT JOIN store e USING (store_no)
 WHERE coalesce(e.category, m.category) IS DISTINCT FROM s.category OR t.merchant_no IS DISTINCT FROM r.merchant_no
 ORDER BY r.voucher_id, r.attempt LIMIT $1

-- name: a3g_one_voucher_an_order
-- Orders paid with more than one voucher at a time.
SELECT format('merchant %s, order %s: %s vouchers, first %s', merchant_no, order_no, uses, first_voucher) AS what, count(*) OVER () AS violations
  FROM (SELECT r.merchant_no, r.order_no, count(*) AS uses, min(r.voucher_id) AS first_voucher
          FROM redemption r
         WHERE NOT EXISTS (SELECT FROM refund f WHERE f.bucket = r.bucket AND f.voucher_id = r.voucher_id AND f.attempt = r.attempt)
         GROUP BY r.merchant_no, r.order_no HAVING count(*) > 1) o
 ORDER BY merchant_no, order_no LIMIT $1

-- name: a3h_refund_mirrors
-- Refunds that do not turn around the redemption they name: merchant and stock; no more cash than the customer paid; as much
-- subsidy as the policy says; counted 1, 2, ... n.
WITH part AS (
    SELECT f.*, r.voucher_id IS NOT NULL AND s.stock_no IS NOT NULL AND (f.merchant_no, f.stock_no) = (r.merchant_no, r.stock_no) AS is_of_use,
           r.subsidy_fen AS whole_fen, r.bill_fen - s.face_value_fen AS paid_fen, s.refund_policy, voucher_end(s.valid_until, s.valid_days, v.claimed_at) AS ends_at,
           row_number() OVER so_far AS turn, sum(f.refund_fen) OVER so_far AS cash_fen, sum(f.subsidy_fen) OVER so_far AS back_fen
      FROM refund f LEFT JOIN redemption r USING (bucket, voucher_id, attempt) LEFT JOIN stock s ON s.stock_no = f.stock_no
      LEFT JOIN voucher v ON v.bucket = f.bucket AND v.voucher_id = f.voucher_id
    WINDOW so_far AS (PARTITION BY f.bucket, f.voucher_id, f.attempt ORDER BY f.refund_no)
)
SELECT format('refund %s/%s/%s at merchant %s: subsidy %s fen, in all %s of %s, cash %s fen, in all %s of %s, to %s', voucher_id, attempt, refund_no,
              merchant_no, subsidy_fen, back_fen, coalesce(whole_fen::text, 'none'), refund_fen, cash_fen, coalesce(paid_fen::text, 'none'), credit) AS what,
       count(*) OVER () AS violations
  FROM part
 WHERE is_of_use IS NOT TRUE OR turn <> refund_no OR cash_fen > paid_fen
    OR back_fen <> CASE WHEN refund_policy = 'RETURN_TO_BUDGET' OR cash_fen = paid_fen THEN whole_fen ELSE div(whole_fen * cash_fen, paid_fen) END
    OR (credit = 'ISSUED') <> (refund_policy = 'RESTORE' AND turn = 1 AND cash_fen = paid_fen AND refunded_at < ends_at)
 ORDER BY voucher_id, attempt, refund_no LIMIT $1

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

-- name: examined_numbers
-- Numbers that tills gave: two a redemption and a hold, one a refund and a cancel.
SELECT 2 * (SELECT count(*) FROM redemption) + 2 * (SELECT count(*) FROM hold) + (SELECT count(*) FROM refund)
     + (SELECT count(*) FROM hold_end WHERE outcome = 'CANCELLED')

-- name: examined_till_holds
-- All holds.
SELECT count(*) FROM hold

-- name: a3k_holds_end_once
-- Holds whose end does not fit: confirmed without the redemption of their attempt, or redeemed without being confirmed; a
-- redemption of other money than was held; confirmed after their time, or ended before it.
SELECT format('hold %s/%s at merchant %s: %s, redemption %s', h.voucher_id, h.attempt, h.merchant_no, coalesce(e.outcome::text, 'never ended'),
              coalesce(r.use_request_no, 'none')) AS what, count(*) OVER () AS violations
  FROM hold h LEFT JOIN hold_end e USING (voucher_id, bucket, attempt) LEFT JOIN redemption r USING (voucher_id, bucket, attempt)
 WHERE (e.outcome IS NOT DISTINCT FROM 'CONFIRMED') <> (r.voucher_id IS NOT NULL)
    OR (r.merchant_no, r.stock_no, r.order_no, r.bill_fen, r.subsidy_fen, r.use_request_no)
       <> (h.merchant_no, h.stock_no, h.order_no, h.bill_fen, h.subsidy_fen, e.request_no)
    OR (e.ended_at >= h.expires_at AND e.outcome = 'CONFIRMED') OR e.ended_at < h.held_at
 ORDER BY h.voucher_id, h.attempt LIMIT $1

-- name: examined_capped
-- Uses in campaigns with caps.
SELECT count(*) FROM person_use

-- name: a2d_redeem_caps
-- People who redeemed more face than a cap allows, and redemptions in campaigns with caps that no cap could count.
WITH used AS (
    SELECT v.person, d.campaign_no, k.partner_no, date_trunc('month', u.used_on)::date AS month, k.face_value_fen
      FROM person_use u JOIN redemption r USING (voucher_id, bucket, attempt) JOIN voucher v USING (voucher_id, bucket)
      JOIN stock k ON k.stock_no = v.stock_no JOIN round d USING (round_no)
     WHERE r.subsidy_fen > coalesce((SELECT sum(f.subsidy_fen) FROM refund f
            WHERE f.bucket = r.bucket AND f.voucher_id = r.voucher_id AND f.attempt = r.attempt), 0)
), spent AS (
    SELECT u.person, c.campaign_no, c.period, c.face_fen_max, sum(u.face_value_fen) AS face_fen
      FROM used u JOIN redeem_cap c USING (campaign_no)
     GROUP BY u.person, c.campaign_no, c.period, c.is_per_partner, c.face_fen_max,
              CASE WHEN c.is_per_partner THEN u.partner_no END, CASE c.period WHEN 'MONTH' THEN u.month END
    HAVING sum(u.face_value_fen) > c.face_fen_max
), uncounted AS (
    SELECT r.voucher_id, r.attempt FROM redemption r JOIN stock k USING (stock_no) JOIN round d USING (round_no)
     WHERE EXISTS (SELECT FROM redeem_cap c WHERE c.campaign_no = d.campaign_no)
       AND NOT EXISTS (SELECT FROM person_use u WHERE u.voucher_id = r.voucher_id AND u.attempt = r.attempt)
), wrong AS (
    SELECT format('person %s: redeemed %s fen of face in campaign %s, %s limit %s', person, face_fen, campaign_no, period, face_fen_max) AS what FROM spent
    UNION ALL SELECT format('redemption %s/%s: counted for no cap', voucher_id, attempt) FROM uncounted
)
SELECT what, count(*) OVER () AS violations FROM wrong ORDER BY what LIMIT $1

-- name: numbers_given
-- Numbers that tills gave, by voucher, with what they were sent with: scope, number, and for a use or a hold its payment and
-- bill, for a confirmed hold its number, for a refund the use and the cash, for a cancel the hold. Not of rounds that were
-- unlinked from people, whose numbers are gone.
SELECT * FROM (
SELECT r.bucket, r.voucher_id, r.merchant_no, 'USE' AS scope, r.use_request_no AS number, r.order_no, r.bill_fen AS fen, h.hold_request_no AS of_number
  FROM redemption r LEFT JOIN hold h USING (bucket, voucher_id, attempt)
UNION ALL
SELECT h.bucket, h.voucher_id, h.merchant_no, 'HOLD', h.hold_request_no, h.order_no, h.bill_fen, NULL FROM hold h
UNION ALL
SELECT f.bucket, f.voucher_id, f.merchant_no, 'REFUND', f.refund_request_no, NULL, f.refund_fen, r.use_request_no
  FROM refund f JOIN redemption r USING (bucket, voucher_id, attempt)
UNION ALL
SELECT e.bucket, e.voucher_id, h.merchant_no, 'CANCEL', e.request_no, NULL, 0, h.hold_request_no
  FROM hold_end e JOIN hold h USING (bucket, voucher_id, attempt) WHERE e.outcome = 'CANCELLED') AS given
 WHERE voucher_id >> 38 <> ALL (ARRAY(SELECT round_no FROM retention_step WHERE step = 'UNLINK'))
 ORDER BY voucher_id

-- name: numbers_registered
-- What numbers are registered with, by voucher. Keys as bytes, which the program compares quicker.
SELECT bucket, uuid_send(request_key) AS request_key, body_hash, voucher_id FROM request_number ORDER BY voucher_id

-- name: buckets
-- How many buckets the city has.
SELECT buckets FROM city

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
    SELECT r.bucket, r.stock_no, count(*) AS used FROM redemption r
     WHERE NOT EXISTS (SELECT FROM refund f
            WHERE f.bucket = r.bucket AND f.voucher_id = r.voucher_id AND f.attempt = r.attempt AND f.credit = 'ISSUED')
     GROUP BY r.bucket, r.stock_no
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
    SELECT r.bucket, r.stock_no, count(*) AS used FROM redemption r
     WHERE NOT EXISTS (SELECT FROM refund f
            WHERE f.bucket = r.bucket AND f.voucher_id = r.voucher_id AND f.attempt = r.attempt AND f.credit = 'ISSUED')
     GROUP BY r.bucket, r.stock_no
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
-- Campaigns into which more money was put, less what was returned, than the city decided.
SELECT format('campaign %s: funded with %s fen, decided were %s fen', c.campaign_id, t.funded_fen, c.fund_fen) AS what, count(*) OVER () AS violations
  FROM campaign c JOIN (
       SELECT campaign_no, sum(CASE WHEN debit = 'CITY_FUND' THEN amount_fen ELSE -amount_fen END) AS funded_fen
         FROM transfer WHERE 'CITY_FUND' IN (debit, credit) GROUP BY campaign_no) t USING (campaign_no)
 WHERE t.funded_fen > c.fund_fen
 ORDER BY c.campaign_no LIMIT $1

-- ---------------------------------------------------------------- A6: settlement

-- name: examined_lines
-- All lines of settlement batches.
SELECT count(*) FROM settlement_line

-- name: examined_decisions
-- All decisions about settlement batches.
SELECT count(*) FROM settlement_decision

-- name: examined_holds
-- Transfers that took money into settlement.
SELECT count(*) FROM transfer WHERE kind = 'SETTLE_HOLD'

-- name: examined_answers
-- Lines that the bank answered.
SELECT count(*) FROM settlement_answer

-- name: examined_settled
-- Transfers that ended a line's settlement.
SELECT count(*) FROM transfer WHERE kind IN ('SETTLE_POST', 'SETTLE_VOID')

-- name: examined_returns
-- Transfers that took money out of RETURNED.
SELECT count(*) FROM transfer WHERE kind = 'RETURN'

-- name: examined_files
-- Files of partners and of the bank.
SELECT (SELECT count(*) FROM flow_file) + (SELECT count(*) FROM bank_file)

-- name: a6a_lines_are_owed
-- Lines that are not what the redemptions, refunds and settlements before them left owing, or not the sum of their shares.
WITH sold AS (
    SELECT d.campaign_no, r.merchant_no, r.booked_on AS day, sum(r.subsidy_fen) AS fen
      FROM redemption r JOIN stock USING (stock_no) JOIN round d USING (round_no) GROUP BY d.campaign_no, r.merchant_no, r.booked_on
    UNION ALL
    SELECT d.campaign_no, f.merchant_no, f.booked_on, -sum(f.subsidy_fen)
      FROM refund f JOIN stock USING (stock_no) JOIN round d USING (round_no) GROUP BY d.campaign_no, f.merchant_no, f.booked_on
), line AS (
    SELECT l.batch_no, l.line_no, b.campaign_no, l.merchant_no, b.day, b.last_transfer_id, l.amount_fen,
           coalesce((SELECT sum(s.amount_fen) FROM settlement_share s WHERE s.batch_no = l.batch_no AND s.line_no = l.line_no), 0) AS shares_fen
      FROM settlement_line l JOIN settlement_batch b USING (batch_no)
), earned AS (
    SELECT batch_no, line_no, earned_fen
      FROM (SELECT batch_no, line_no, sum(fen) OVER (PARTITION BY campaign_no, merchant_no ORDER BY day) AS earned_fen
              FROM (SELECT NULL::integer AS batch_no, NULL::integer AS line_no, campaign_no, merchant_no, day, fen FROM sold
                    UNION ALL SELECT batch_no, line_no, campaign_no, merchant_no, day, 0 FROM line) AS event) AS told
     WHERE batch_no IS NOT NULL
), taken AS (
    SELECT batch_no, line_no, taken_fen
      FROM (SELECT batch_no, line_no, sum(fen) OVER (PARTITION BY campaign_no, merchant_no ORDER BY transfer_id) AS taken_fen
              FROM (SELECT NULL::integer AS batch_no, NULL::integer AS line_no, campaign_no, merchant_no, transfer_id,
                           CASE WHEN debit = 'PAYABLE' THEN amount_fen ELSE -amount_fen END AS fen
                      FROM transfer WHERE 'PAYABLE' IN (debit, credit)
                    UNION ALL SELECT batch_no, line_no, campaign_no, merchant_no, last_transfer_id, 0 FROM line) AS event) AS told
     WHERE batch_no IS NOT NULL
)
SELECT format('batch %s line %s, merchant %s: %s fen, shares %s fen, the rows up to %s leave %s fen owing', batch_no, line_no, l.merchant_no,
              l.amount_fen, l.shares_fen, l.day, e.earned_fen - t.taken_fen) AS what, count(*) OVER () AS violations
  FROM line l JOIN earned e USING (batch_no, line_no) JOIN taken t USING (batch_no, line_no)
 WHERE l.amount_fen <> l.shares_fen OR l.amount_fen <> e.earned_fen - t.taken_fen
 ORDER BY batch_no, line_no LIMIT $1

-- name: a6b_holds_are_approved
-- SETTLE_HOLD transfers that are not the share of an approved line that nothing holds back, and such shares without one.
WITH due AS (
    SELECT s.bucket, format('batch %s line %s bucket %s', s.batch_no, s.line_no, s.bucket) AS reference, b.campaign_no, l.merchant_no,
           CASE WHEN s.amount_fen > 0 THEN 'PAYABLE' ELSE 'SETTLING' END::account_kind AS debit, abs(s.amount_fen) AS amount_fen
      FROM settlement_share s JOIN settlement_line l USING (batch_no, line_no) JOIN settlement_batch b USING (batch_no)
      JOIN settlement_decision d USING (batch_no) LEFT JOIN settlement_line_held k USING (batch_no, line_no)
     WHERE d.is_approved AND k.hold_id IS NULL
), booked AS (
    SELECT bucket, reference, campaign_no, merchant_no, debit, amount_fen FROM transfer WHERE kind = 'SETTLE_HOLD'
)
SELECT format('%s: booked %s, approved %s (fen)', reference, coalesce(t.amount_fen::text, 'nothing'), coalesce(d.amount_fen::text, 'nothing')) AS what,
       count(*) OVER () AS violations
  FROM due d FULL JOIN booked t USING (bucket, reference)
 WHERE (d.campaign_no, d.merchant_no, d.debit, d.amount_fen) IS DISTINCT FROM (t.campaign_no, t.merchant_no, t.debit, t.amount_fen)
 ORDER BY reference LIMIT $1

-- name: a6c_two_people
-- Batches approved by the person who proposed them, or decided under another proposer's name.
SELECT format('batch %s: proposed by %s, decided by %s', b.batch_id, b.proposed_by, d.decided_by) AS what, count(*) OVER () AS violations
  FROM settlement_batch b JOIN settlement_decision d USING (batch_no)
 WHERE (d.is_approved AND lower(d.decided_by) = lower(b.proposed_by)) OR d.proposed_by <> b.proposed_by OR d.campaign_no <> b.campaign_no
 ORDER BY b.batch_no LIMIT $1

-- name: a6d_answers_are_booked
-- SETTLE_POST and SETTLE_VOID transfers that are not the bank's answer to a line in settlement, and answers without them.
WITH due AS (
    SELECT 0::smallint AS bucket, 'SETTLE_POST'::transfer_kind AS kind, format('batch %s line %s', a.batch_no, a.line_no) AS reference,
           b.campaign_no, l.merchant_no, 'SETTLING'::account_kind AS debit, l.amount_fen
      FROM settlement_answer a JOIN settlement_line l USING (batch_no, line_no) JOIN settlement_batch b USING (batch_no)
     WHERE a.outcome = 'PAID'
    UNION ALL
    SELECT s.bucket, 'SETTLE_VOID', format('batch %s line %s bucket %s', s.batch_no, s.line_no, s.bucket), b.campaign_no, l.merchant_no,
           CASE WHEN s.amount_fen > 0 THEN 'SETTLING' ELSE 'PAYABLE' END::account_kind, abs(s.amount_fen)
      FROM settlement_answer a JOIN settlement_share s USING (batch_no, line_no) JOIN settlement_line l USING (batch_no, line_no)
      JOIN settlement_batch b USING (batch_no)
     WHERE a.outcome = 'REJECTED'
), booked AS (
    SELECT bucket, kind, reference, campaign_no, merchant_no, debit, amount_fen FROM transfer WHERE kind IN ('SETTLE_POST', 'SETTLE_VOID')
)
SELECT format('%s %s: booked %s, answered %s (fen)', kind, reference, coalesce(t.amount_fen::text, 'nothing'),
              coalesce(d.amount_fen::text, 'nothing')) AS what, count(*) OVER () AS violations
  FROM due d FULL JOIN booked t USING (bucket, kind, reference)
 WHERE (d.campaign_no, d.merchant_no, d.debit, d.amount_fen) IS DISTINCT FROM (t.campaign_no, t.merchant_no, t.debit, t.amount_fen)
 ORDER BY kind, reference LIMIT $1

-- name: a6e_answers_are_the_banks
-- Answers that are not what an imported file of the bank says about a line that we sent it.
SELECT format('batch %s line %s: %s, bank file %s row %s says %s of %s fen', a.batch_no, a.line_no, a.outcome, a.bank_file_no, a.row_no,
              coalesce(w.outcome::text, 'nothing'), w.amount_fen) AS what, count(*) OVER () AS violations
  FROM settlement_answer a JOIN settlement_line l USING (batch_no, line_no)
  LEFT JOIN bank_row w USING (bank_file_no, row_no) LEFT JOIN bank_file f USING (bank_file_no) LEFT JOIN bank_import i USING (bank_file_no)
  LEFT JOIN settlement_decision d ON d.batch_no = a.batch_no
  LEFT JOIN settlement_line_held k ON k.batch_no = a.batch_no AND k.line_no = a.line_no
 WHERE (a.line_no, a.outcome, l.amount_fen, l.payee_account) IS DISTINCT FROM (w.line_no, w.outcome, w.amount_fen, w.payee_account)
    OR f.batch_no IS DISTINCT FROM a.batch_no OR i.bank_file_no IS NULL OR d.is_approved IS NOT TRUE OR k.hold_id IS NOT NULL
    OR NOT EXISTS (SELECT FROM settlement_export e WHERE e.batch_no = a.batch_no AND e.sha256 = f.order_sha256)
 ORDER BY a.batch_no, a.line_no LIMIT $1

-- name: a6f_holds_respected
-- Lines paid to a merchant who was on hold from before the proposal until after the approval, and lines kept out by another's hold.
SELECT format('batch %s line %s, merchant %s: hold %s (%s) of merchant %s', l.batch_no, l.line_no, l.merchant_no, h.hold_id, h.reason_code,
              h.merchant_no) AS what, count(*) OVER () AS violations
  FROM settlement_line l JOIN settlement_batch b USING (batch_no) LEFT JOIN settlement_decision d USING (batch_no)
  LEFT JOIN settlement_line_held k USING (batch_no, line_no)
  JOIN merchant_hold h ON h.hold_id = k.hold_id OR (k.hold_id IS NULL AND h.merchant_no = l.merchant_no)
  LEFT JOIN merchant_hold_release r ON r.hold_id = h.hold_id
 WHERE CASE WHEN k.hold_id IS NULL
            THEN d.is_approved AND h.placed_at < b.proposed_at AND coalesce(r.released_at > d.decided_at, true)
            ELSE h.merchant_no <> l.merchant_no END
 ORDER BY l.batch_no, l.line_no LIMIT $1

-- name: a6g_returns_are_ordered
-- RETURN transfers that nobody ordered, and orders that were not booked.
WITH booked AS (
    SELECT campaign_no, reference, credit, amount_fen FROM transfer WHERE kind = 'RETURN'
), due AS (
    SELECT campaign_no, format('return %s %s', campaign_no, reference) AS reference, credit, amount_fen FROM fund_return
)
SELECT format('%s: booked %s, ordered %s (fen)', reference, coalesce(t.amount_fen::text, 'nothing'), coalesce(d.amount_fen::text, 'nothing')) AS what,
       count(*) OVER () AS violations
  FROM due d FULL JOIN booked t USING (campaign_no, reference)
 WHERE (d.credit, d.amount_fen) IS DISTINCT FROM (t.credit, t.amount_fen)
 ORDER BY reference LIMIT $1

-- name: a6h_files_are_whole
-- Files of partners and of the bank whose kept rows are not what their trailers say, in number and money.
SELECT what, count(*) OVER () AS violations
  FROM (SELECT format('flow file %s of partner %s for %s: trailer %s rows and %s fen, kept %s rows and %s fen', f.file_no, f.partner_no, f.day,
                      f.row_count, f.amount_fen, count(w.file_no), coalesce(sum(w.subsidy_fen), 0)) AS what
          FROM flow_file f LEFT JOIN flow_row w USING (file_no)
         GROUP BY f.file_no HAVING count(w.file_no) <> f.row_count OR coalesce(sum(w.subsidy_fen), 0) <> f.amount_fen
        UNION ALL
        SELECT format('bank file %s of batch %s: trailer %s rows and %s fen, kept %s rows and %s fen', f.bank_file_no, f.batch_no,
                      f.row_count, f.amount_fen, count(w.bank_file_no), coalesce(sum(w.amount_fen), 0))
          FROM bank_file f LEFT JOIN bank_row w USING (bank_file_no)
         GROUP BY f.bank_file_no HAVING count(w.bank_file_no) <> f.row_count OR coalesce(sum(w.amount_fen), 0) <> f.amount_fen) AS torn
 ORDER BY what LIMIT $1

-- ---------------------------------------------------------------- A7: the records themselves

-- name: money_tables
-- Tables whose rows are only ever added.
SELECT unnest(ARRAY['city', 'campaign', 'voucher', 'transfer', 'redemption', 'refund', 'hold', 'hold_end', 'offline_use', 'redeem_cap', 'day_close', 'merchant_day',
    'merchant_hold', 'merchant_hold_release', 'settlement_batch', 'settlement_decision', 'settlement_line', 'settlement_share', 'settlement_line_held',
    'settlement_export', 'bank_file', 'bank_row', 'bank_import', 'settlement_answer', 'fund_return', 'flow_file', 'flow_row',
    'recon_run', 'recon_run_flow', 'recon_run_bank', 'recon_break', 'recon_closure',
    'claim_group', 'pack', 'pack_item', 'release_stage', 'stock_move', 'rollover', 'rollover_stock', 'rollover_return',
    'grant_run', 'grant_result', 'register_load', 'standing_change', 'key_change', 'erasure', 'stock_district', 'stock_merchant', 'category_name'])

-- name: derived_tables
-- Tables that only the database's own functions write.
SELECT unnest(ARRAY['account', 'merchant_day', 'day_close', 'settlement_batch', 'settlement_decision', 'settlement_line', 'settlement_share',
    'settlement_line_held', 'bank_import', 'settlement_answer', 'fund_return',
    'stock_move', 'rollover', 'rollover_stock', 'rollover_return'])

-- name: examined_pages
-- One database.
SELECT 1::bigint

-- name: a7a_checksums
-- Whether PostgreSQL would notice a page that changed on disk, and whether it already did.
SELECT what, count(*) OVER () AS violations
  FROM (SELECT 'data_checksums is ' || current_setting('data_checksums') AS what WHERE current_setting('data_checksums') <> 'on'
        UNION ALL
        SELECT format('%s pages with a wrong checksum were read', checksum_failures)
          FROM pg_stat_database WHERE datname = current_database() AND checksum_failures > 0) AS fault
 ORDER BY what LIMIT $1

-- name: examined_guards
-- Tables ($1) of money with their partitions.
SELECT count(*) FROM unnest($1::text[]) AS t(name) CROSS JOIN LATERAL (
       SELECT to_regclass('public.' || name) UNION SELECT relid FROM pg_partition_tree(to_regclass('public.' || name))
       UNION SELECT relid FROM pg_partition_tree(to_regclass('archive.' || name))) AS part

-- name: a7b_append_only
-- Tables of money ($2), or partitions of them, on which a row could be changed or removed, or a transfer go past the accounts.
WITH part AS (
    SELECT t.name, p.relid FROM unnest($2::text[]) AS t(name) CROSS JOIN LATERAL (
           SELECT to_regclass('public.' || t.name) AS relid UNION SELECT relid FROM pg_partition_tree(to_regclass('public.' || t.name))
           UNION SELECT relid FROM pg_partition_tree(to_regclass('archive.' || t.name))) AS p
), guard AS (
    SELECT t.tgrelid, t.tgtype FROM pg_trigger t JOIN pg_proc f ON f.oid = t.tgfoid
     WHERE f.proname = 'forbid_change' AND t.tgenabled IN ('O', 'A') AND t.tgqual IS NULL AND t.tgattr::text = ''
       AND regexp_replace(f.prosrc, '\s+', ' ', 'g') ~ '^ ?BEGIN RAISE EXCEPTION [^;]+; END ?$'
)
SELECT what, count(*) OVER () AS violations
  FROM (SELECT format('table %s is not there', name) AS what FROM part WHERE relid IS NULL
        UNION ALL
        SELECT format('table %s: %s is not stopped', replace(relid::regclass::text, 'public.', ''), w.verb)
          FROM part CROSS JOIN (VALUES ('UPDATE', 1 + 2 + 16), ('DELETE', 1 + 2 + 8), ('TRUNCATE', 2 + 32)) AS w(verb, needed)
         WHERE relid IS NOT NULL AND NOT EXISTS (SELECT FROM guard g WHERE g.tgrelid = part.relid AND g.tgtype & w.needed = w.needed)
        UNION ALL
        SELECT 'table transfer: its rows do not reach the accounts'
         WHERE NOT EXISTS (SELECT FROM pg_trigger t JOIN pg_proc f ON f.oid = t.tgfoid
                            WHERE t.tgrelid = to_regclass('public.transfer') AND f.proname = 'post_to_accounts' AND t.tgenabled IN ('O', 'A')
                              AND t.tgtype & (1 + 2 + 4) = 4)) AS gap
 ORDER BY what LIMIT $1

-- name: a7c_privileges
-- Roles but the owner who may change rows of money ($2), or write what only the database's functions write ($3).
WITH part AS (
    SELECT DISTINCT p.relid, c.relowner
      FROM (SELECT unnest($2::text[]) UNION SELECT unnest($3::text[])) AS t(name) CROSS JOIN LATERAL (
           SELECT to_regclass('public.' || t.name) AS relid UNION SELECT relid FROM pg_partition_tree(to_regclass('public.' || t.name))
           UNION SELECT relid FROM pg_partition_tree(to_regclass('archive.' || t.name))) AS p
      JOIN pg_class c ON c.oid = p.relid
), derived AS (
    SELECT to_regclass('public.' || name) AS relid FROM unnest($3::text[]) AS d(name)
), person AS (
    SELECT oid, rolname FROM pg_roles WHERE NOT rolsuper AND rolname !~ '^pg_'
)
SELECT what, count(*) OVER () AS violations
  FROM (SELECT format('%s may %s %s', r.rolname, v.verb, replace(p.relid::regclass::text, 'public.', '')) AS what
          FROM part p CROSS JOIN person r CROSS JOIN (VALUES ('UPDATE'), ('DELETE'), ('TRUNCATE'), ('TRIGGER')) AS v(verb)
         WHERE r.oid <> p.relowner AND (has_table_privilege(r.oid, p.relid, v.verb)
               OR (v.verb = 'UPDATE' AND has_any_column_privilege(r.oid, p.relid, 'UPDATE')))
        UNION ALL
        SELECT format('%s may INSERT into %s', r.rolname, replace(p.relid::regclass::text, 'public.', ''))
          FROM derived d JOIN part p USING (relid) CROSS JOIN person r
         WHERE r.oid <> p.relowner AND (has_table_privilege(r.oid, p.relid, 'INSERT') OR has_any_column_privilege(r.oid, p.relid, 'INSERT'))
        UNION ALL
        SELECT DISTINCT format('%s may act as %s', r.rolname, o.rolname)
          FROM person r CROSS JOIN (SELECT DISTINCT relowner AS oid FROM part UNION SELECT oid FROM pg_roles WHERE rolname = 'pg_write_all_data') q
          JOIN pg_roles o ON o.oid = q.oid
         WHERE r.oid <> o.oid AND pg_has_role(r.oid, o.oid, 'MEMBER')
        UNION ALL
        SELECT format('%s is %s', rolname, CASE WHEN rolsuper THEN 'a superuser' ELSE 'not bound by row security' END)
          FROM pg_roles WHERE rolname LIKE 'hanquan\_%' AND (rolsuper OR rolbypassrls)
        UNION ALL
        SELECT 'any kind of transfer may be posted by whoever may insert: row security is off'
          FROM pg_class WHERE oid = to_regclass('public.transfer') AND NOT relrowsecurity
        UNION ALL
        SELECT format('policy %s lets everyone post transfers', polname)
          FROM pg_policy WHERE polrelid = to_regclass('public.transfer') AND polcmd <> 'r' AND 0 = ANY (polroles)) AS right_given
 ORDER BY what LIMIT $1

-- ---------------------------------------------------------------- what clients were told

-- name: partner_names
-- Our numbers of partners, by the names they use.
SELECT partner_id, partner_no FROM partner

-- name: merchant_names
-- Our numbers of merchants, by the names they use.
SELECT merchant_id, merchant_no FROM merchant

-- name: stock_names
-- Our numbers of stocks, and of packs below zero, and their rounds, by the names that clients use.
SELECT stock_id, stock_no, round_no FROM stock UNION ALL SELECT pack_id, -pack_no, round_no FROM pack

-- name: log_claims
-- What claims ($1 bucket, $2 key, $3 person, $4 number, $5 partner, $6 round) brought: how often, and the first of it. In order.
SELECT coalesce(v.times, 0) AS times, v.voucher_id, v.stock_no
  FROM unnest($1::smallint[], $2::integer[], $3::uuid[], $4::text[], $5::smallint[], $6::bigint[]) WITH ORDINALITY
       AS a(bucket, request_key, person, out_request_no, partner_no, round_no, position)
  LEFT JOIN LATERAL (
       SELECT count(*) FILTER (WHERE v.pack_no IS NULL) + count(DISTINCT v.pack_no) AS times, min(v.voucher_id) AS voucher_id,
              (array_agg(coalesce(-v.pack_no, v.stock_no) ORDER BY v.voucher_id))[1] AS stock_no
         FROM voucher v JOIN stock s USING (stock_no)
        WHERE v.bucket = a.bucket AND v.request_key & 524287 = a.request_key & 524287 AND v.request_key = a.request_key AND v.person = a.person AND v.out_request_no = a.out_request_no
          AND s.partner_no = a.partner_no AND v.voucher_id >= a.round_no << 38 AND v.voucher_id < (a.round_no + 1) << 38) v ON true
 ORDER BY a.position

-- name: log_redemptions
-- What redemptions ($1 voucher, $2 merchant, $3 number) left: how often, and the first of it. In order.
SELECT coalesce(r.times, 0) AS times, r.bill_fen, r.subsidy_fen, r.order_no
  FROM city c CROSS JOIN unnest($1::bigint[], $2::integer[], $3::text[]) WITH ORDINALITY AS a(voucher_id, merchant_no, use_request_no, position)
  LEFT JOIN LATERAL (
       SELECT count(*) OVER () AS times, r.bill_fen, r.subsidy_fen, r.order_no
         FROM redemption r
        WHERE r.bucket = ((a.voucher_id >> 28) & 1023) * c.buckets / 1024 AND r.voucher_id = a.voucher_id
          AND r.merchant_no = a.merchant_no AND r.use_request_no = a.use_request_no
        ORDER BY r.attempt LIMIT 1) r ON true
 ORDER BY a.position

-- name: log_refunds
-- What refunds ($1 bucket and $2 key of the number, $3 merchant, $4 number) left: how often, and the first of it. In order.
SELECT coalesce(f.times, 0) AS times, f.refund_fen, f.subsidy_fen, f.use_request_no
  FROM city c CROSS JOIN unnest($1::smallint[], $2::uuid[], $3::integer[], $4::text[]) WITH ORDINALITY
       AS a(bucket, request_key, merchant_no, refund_request_no, position)
  LEFT JOIN request_number n ON n.bucket = a.bucket AND n.request_key = a.request_key
  LEFT JOIN LATERAL (
       SELECT count(*) OVER () AS times, f.refund_fen, f.subsidy_fen, r.use_request_no
         FROM refund f JOIN redemption r USING (bucket, voucher_id, attempt)
        WHERE f.bucket = ((n.voucher_id >> 28) & 1023) * c.buckets / 1024 AND f.voucher_id = n.voucher_id
          AND f.merchant_no = a.merchant_no AND f.refund_request_no = a.refund_request_no
        ORDER BY f.attempt LIMIT 1) f ON true
 ORDER BY a.position

-- name: log_sold_out
-- Of these stocks ($1) those with vouchers left.
SELECT s.stock_id, s.quantity, coalesce(v.issued, 0) AS issued
  FROM stock s LEFT JOIN (SELECT stock_no, count(*) AS issued FROM voucher GROUP BY stock_no) v USING (stock_no)
 WHERE s.stock_id = ANY ($1::text[]) AND coalesce(v.issued, 0) < s.quantity
 ORDER BY s.stock_id
