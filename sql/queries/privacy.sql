-- Queries of stack/privacy, as hanquan_custodian: what is known of a person, and what can be removed.

-- name: person_vouchers
-- The numbers of a person's vouchers ($2 bucket, $3 partition), old rounds too.
SELECT voucher_id FROM person_vouchers($1, $2, $3) AS voucher_id;

-- name: person_rows
-- Every row about a person with the table it stands in ($2 bucket, $3 the person's vouchers).
SELECT place, item::text AS item FROM person_rows($1, $2, $3);

-- name: stocks
-- What stocks are called ($1), and of which campaign.
SELECT s.stock_no, s.stock_id, c.campaign_id FROM stock s JOIN round USING (round_no) JOIN campaign c USING (campaign_no)
 WHERE s.stock_no = ANY ($1::integer[]);

-- name: merchants
-- What merchants are called ($1).
SELECT merchant_no, merchant_id, name FROM merchant WHERE merchant_no = ANY ($1::integer[]);

-- name: open_rounds
-- Until when anybody can still claim, after $1; null when nothing is open or coming.
SELECT max(closes_at) FROM round WHERE closes_at > $1;

-- name: kept_until
-- When retention removes what of a person: remembered claims of rounds, the link of rounds to people.
SELECT max(e.closes_at + make_interval(days => k.keep_days)) FILTER (WHERE NOT is_step_done(e.round_no, 'CLAIM_KEYS')) AS claim_keys,
       max(e.campaign_ends_at + make_interval(days => l.keep_days)) AS person_link
  FROM round_end e, retention_rule k, retention_rule l
 WHERE k.family = 'claim_keys' AND l.family = 'person_link' AND e.round_no = ANY ($1::smallint[]);

-- name: block_until
-- Until when a person is refused, at a time; null when nothing stands against them.
SELECT max(expires_at) FROM person_block WHERE person = $1 AND lifted_at IS NULL AND expires_at > $2;

-- name: delete_flags
-- Removes closed flags about a person.
DELETE FROM flag WHERE subject_kind = 'person' AND subject = $1 AND closed_at IS NOT NULL RETURNING flag_id;

-- name: delete_blocks
-- Removes blocks of a person that are over.
DELETE FROM person_block WHERE person = $1 AND (lifted_at IS NOT NULL OR expires_at <= $2) RETURNING block_id;

-- name: delete_callbacks
-- Removes callbacks about a person's vouchers ($2, bucket $1) that were delivered or given up.
DELETE FROM callback_event WHERE bucket = $1 AND voucher_id = ANY ($2::bigint[]) AND next_at IS NULL RETURNING voucher_id;

-- name: earlier
-- Erasures under the same hash of a token.
SELECT erasure_no, erased_at FROM erasure WHERE person_hash = $1 ORDER BY erasure_no;

-- name: insert_erasure
-- Writes down that something was erased: hash of the token, what went, what stays, who asked for it, why, when.
INSERT INTO erasure (person_hash, removed, kept, asked_by, why, erased_at) VALUES ($1, $2::jsonb, $3::jsonb, $4, $5, $6) RETURNING erasure_no;
