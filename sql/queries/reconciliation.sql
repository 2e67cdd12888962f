-- name: our_flow
-- Our redemptions and refunds of a partner's vouchers on one day, in the columns of a flow file.
SELECT kind::text, merchant_id, use_request_no, refund_request_no, out_request_no, stock_id, voucher_state,
       bill_fen, subsidy_fen, occurred_at
  FROM our_flow WHERE campaign_no = $1 AND partner_no = $2 AND day = $3
 ORDER BY occurred_at, merchant_id, use_request_no, kind;

-- name: campaign_id
-- The name of a campaign.
SELECT campaign_id FROM campaign WHERE campaign_no = $1;

-- name: partners
-- All partners by name.
SELECT partner_id, partner_no FROM partner ORDER BY partner_no;

-- name: missing_files
-- Partners whose vouchers were redeemed or refunded on a day, and from whom no file of that day came.
SELECT p.partner_id FROM partner p
 WHERE EXISTS (SELECT FROM our_flow f WHERE f.campaign_no = $1 AND f.partner_no = p.partner_no AND f.day = $2)
   AND NOT EXISTS (SELECT FROM flow_in_force f WHERE f.campaign_no = $1 AND f.partner_no = p.partner_no AND f.day = $2)
 ORDER BY p.partner_id;

-- name: is_closed
-- Whether a day is closed in every bucket.
SELECT count(*) = (SELECT buckets FROM city) AND coalesce(bool_and(c.day >= $1), false) AS is_closed
  FROM (SELECT max(day) AS day FROM day_close GROUP BY bucket) c;

-- name: lock
-- One run of a campaign at a time, until the end of the transaction; no bank file is imported meanwhile.
SELECT pg_advisory_xact_lock(4820, $1::smallint), lock_settlement($1::smallint);

-- name: find_flow_file
-- A partner's file by its hash.
SELECT file_no FROM flow_file WHERE sha256 = $1;

-- name: keep_flow_file
-- Keeps what a partner's file says about itself.
INSERT INTO flow_file (partner_no, campaign_no, day, row_count, amount_fen, sha256, received_at) VALUES ($1, $2, $3, $4, $5, $6, $7)
RETURNING file_no;

-- name: file_in_force
-- The file that counts for a partner's day.
SELECT file_no FROM flow_in_force WHERE campaign_no = $1 AND partner_no = $2 AND day = $3;

-- name: was_bank_file_seen
-- Whether an earlier run of the campaign was given a bank file.
SELECT EXISTS (SELECT FROM recon_run_bank WHERE bank_file_no = $1);

-- name: start_run
-- A new run.
INSERT INTO recon_run (campaign_no, day, tolerance_days, bank_days, ran_by, ran_at) VALUES ($1, $2, $3, $4, $5, $6)
RETURNING run_no;

-- name: run_saw_flows
-- The partners' files that a run was given.
INSERT INTO recon_run_flow (run_no, file_no) SELECT $1, unnest($2::integer[]);

-- name: run_saw_banks
-- The bank's files that a run was given.
INSERT INTO recon_run_bank (run_no, bank_file_no) SELECT $1, unnest($2::integer[]);

-- name: last_run
-- The last run of a campaign's day.
SELECT run_no, ran_at FROM recon_run WHERE campaign_no = $1 AND day = $2 ORDER BY run_no DESC LIMIT 1;

-- name: days_to_compare
-- Partners and days for which a file counts, and whose breaks a file of the day can change (partner_breaks looks that far).
SELECT partner_no, day FROM flow_in_force
 WHERE campaign_no = $1 AND day BETWEEN $2::date - 2 * $3::integer AND $2::date + 2 * $3::integer ORDER BY partner_no, day;

-- name: file_partner_breaks
-- Finds and files the breaks of one partner's day: how many are new, how many are gone.
SELECT added, gone FROM file_breaks($1, 'PARTNER', $3, $4,
    ARRAY(SELECT f::found_break FROM partner_breaks($2, $3, $4, $5) f));

-- name: file_bank_breaks
-- Finds and files the breaks with the bank up to a day: how many are new, how many are gone.
SELECT added, gone FROM file_breaks($1, 'BANK', NULL, $3,
    ARRAY(SELECT f::found_break FROM bank_breaks($2, $3, $4, $5) f));

-- name: breaks
-- Breaks of a campaign, the oldest first; $2 and $3 narrow to a day and to open ones, $4 is today.
SELECT b.break_no, b.run_no, b.source::text AS source, b.kind::text AS kind, b.owner, coalesce(p.partner_id, '') AS partner_id,
       b.day, b.key, b.ours_day, b.ours_fen, b.ours_says, b.theirs_day, b.theirs_fen, b.theirs_says,
       coalesce((c.closed_at AT TIME ZONE 'Asia/Shanghai')::date, $4::date) - coalesce(least(b.ours_day, b.theirs_day), b.day) AS age_days,
       c.break_no IS NULL AS is_open, coalesce(c.cause, '') AS cause, coalesce(c.closed_by, '') AS closed_by,
       coalesce(c.why, '') AS why, c.closed_at
  FROM recon_break b
  LEFT JOIN partner p USING (partner_no)
  LEFT JOIN recon_closure c USING (break_no)
 WHERE b.campaign_no = $1 AND ($2::date IS NULL OR b.day = $2) AND (NOT $3::boolean OR c.break_no IS NULL)
 ORDER BY b.day, b.break_no LIMIT $5 OFFSET $6;

-- name: break_totals
-- How many breaks are open, by source, kind and owner, and the money of each side.
SELECT b.source::text AS source, b.kind::text AS kind, b.owner, count(*) AS open_count,
       coalesce(sum(b.ours_fen), 0)::bigint AS ours_fen, coalesce(sum(b.theirs_fen), 0)::bigint AS theirs_fen
  FROM recon_break b
 WHERE b.campaign_no = $1 AND ($2::date IS NULL OR b.day = $2)
   AND NOT EXISTS (SELECT FROM recon_closure c WHERE c.break_no = b.break_no)
 GROUP BY b.source, b.kind, b.owner ORDER BY b.source, b.kind, b.owner;

-- name: break_exists
-- Whether there is such a break.
SELECT EXISTS (SELECT FROM recon_break WHERE break_no = $1);

-- name: close_break
-- Closes a break by hand; no row comes back when it is closed already.
INSERT INTO recon_closure (break_no, cause, closed_by, why, closed_at) VALUES ($1, 'PERSON', $2, $3, $4)
ON CONFLICT (break_no) DO NOTHING RETURNING break_no;
