-- name: lock_onboarding
-- One application is judged at a time, so that two who show the same paper do not pass together.
SELECT pg_advisory_xact_lock(4825);

-- name: insert_load
-- A file of the register or of the public list; answers its number.
INSERT INTO register_load (what, sha256, entries, loaded_by, loaded_at) VALUES ($1, $2, $3, $4, $5) RETURNING load_no;

-- name: upsert_businesses
-- Entries of the register; what is there already is replaced.
INSERT INTO business (credit_code, name, status, valid_until, load_no)
SELECT b.*, $5 FROM unnest($1::text[], $2::text[], $3::text[], $4::date[]) AS b
ON CONFLICT (credit_code) DO UPDATE SET name = excluded.name, status = excluded.status, valid_until = excluded.valid_until,
    load_no = excluded.load_no;

-- name: upsert_listings
-- Entries of the public list; one that is there already gets its new end.
INSERT INTO forger_listing (credit_code, reason, listed_on, listed_until, load_no)
SELECT b.*, $5 FROM unnest($1::text[], $2::text[], $3::date[], $4::date[]) AS b
ON CONFLICT (credit_code, listed_on) DO UPDATE SET reason = excluded.reason, listed_until = excluded.listed_until,
    load_no = excluded.load_no;

-- name: doubtful_merchants
-- Merchants that were approved and that the register or the public list now speaks against; on which day.
SELECT a.merchant_id, a.credit_code::text, coalesce(b.status, 'MISSING') AS status, b.valid_until,
       (SELECT max(f.listed_until) FROM forger_listing f
         WHERE f.credit_code = a.credit_code AND $1::date BETWEEN f.listed_on AND f.listed_until) AS listed_until
  FROM merchant_application a LEFT JOIN business b ON b.credit_code = a.credit_code
 WHERE a.state = 'APPROVED'
   AND (b.status IS DISTINCT FROM 'ACTIVE' OR b.valid_until < $1::date
        OR EXISTS (SELECT FROM forger_listing f WHERE f.credit_code = a.credit_code AND $1::date BETWEEN f.listed_on AND f.listed_until))
 ORDER BY a.merchant_id;

-- name: business
-- One entry of the register.
SELECT credit_code::text, name, status, valid_until FROM business WHERE credit_code = $1;

-- name: listing
-- The entry of the public list that holds on a day and ends last.
SELECT credit_code::text, listed_on, listed_until, reason FROM forger_listing
 WHERE credit_code = $1 AND $2::date BETWEEN listed_on AND listed_until ORDER BY listed_until DESC LIMIT 1;

-- name: taken
-- Who else has this merchant id (enrolled or applied for), and under which id this business applied. $3: the application that asks.
SELECT EXISTS (SELECT FROM merchant m WHERE m.merchant_id = $1)
    OR EXISTS (SELECT FROM merchant_application a WHERE a.merchant_id = $1 AND a.state IN ('SUBMITTED', 'APPROVED')
                  AND a.application_no IS DISTINCT FROM $3::integer) AS is_id_taken,
       (SELECT min(a.merchant_id) FROM merchant_application a WHERE a.credit_code = $2::text AND a.state IN ('SUBMITTED', 'APPROVED')
           AND a.application_no IS DISTINCT FROM $3::integer) AS code_taken_by;

-- name: papers_of_others
-- Papers that other applications show, of these numbers or these files.
SELECT p.kind, p.number, encode(p.sha256, 'hex') AS sha256, a.merchant_id
  FROM merchant_paper p JOIN merchant_application a USING (application_no)
 WHERE p.is_live AND p.application_no IS DISTINCT FROM $4::integer
   AND (p.sha256 = ANY ($3::bytea[])
        OR (p.kind, p.number) IN (SELECT * FROM unnest($1::text[], $2::text[])));

-- name: categories
-- Every category of a campaign.
SELECT DISTINCT category FROM stock;

-- name: save_draft
-- Keeps an application as a draft, in the place of the one before; answers its number.
INSERT INTO merchant_application (merchant_id, credit_code, state, document, sent_by, sent_at)
VALUES ($1, $2::text, 'DRAFT', $3, $4, $5)
ON CONFLICT (merchant_id) WHERE state = 'DRAFT' DO UPDATE SET credit_code = excluded.credit_code, document = excluded.document,
    sent_by = excluded.sent_by, sent_at = excluded.sent_at
RETURNING application_no;

-- name: submit
-- A draft that is complete.
UPDATE merchant_application SET state = 'SUBMITTED' WHERE application_no = $1 AND state = 'DRAFT' RETURNING application_no;

-- name: insert_papers
-- The papers of an application that is submitted.
INSERT INTO merchant_paper (application_no, paper_no, kind, number, holder, valid_from, valid_until, sha256)
SELECT $1, p.place::smallint, p.kind, p.number, p.holder, p.valid_from, p.valid_until, p.sha256
  FROM unnest($2::text[], $3::text[], $4::text[], $5::date[], $6::date[], $7::bytea[])
       WITH ORDINALITY AS p(kind, number, holder, valid_from, valid_until, sha256, place);

-- name: applications
-- The applications of a merchant id, the newest first; it locks them.
SELECT application_no, merchant_id, credit_code::text, state::text, document, sent_by::text, sent_at, decided_by::text, decided_at,
       why, merchant_no
  FROM merchant_application WHERE merchant_id = $1 ORDER BY application_no DESC FOR UPDATE;

-- name: look_at_applications
-- The same, for somebody who only looks.
SELECT application_no, merchant_id, credit_code::text, state::text, document, sent_by::text, sent_at, decided_by::text, decided_at,
       why, merchant_no
  FROM merchant_application WHERE merchant_id = $1 ORDER BY application_no DESC;

-- name: decide
-- Ends an application that waits.
UPDATE merchant_application SET state = $2::text::application_state, decided_by = $3, decided_at = $4, why = $5, merchant_no = $6
 WHERE application_no = $1 AND state = 'SUBMITTED' RETURNING application_no;

-- name: free_papers
-- Papers of an application that was turned down may be shown again.
UPDATE merchant_paper SET is_live = false WHERE application_no = $1;

-- name: insert_merchant
-- A merchant that was approved; answers its number.
INSERT INTO merchant (merchant_id, name, category, district, payee_name, payee_account, payee_bank)
VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING merchant_no;

-- name: insert_store
-- A shop; answers its number, or nothing when the merchant has one of this id.
INSERT INTO store (merchant_no, store_id, name, district, address, category, added_by, added_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (merchant_no, store_id) DO NOTHING RETURNING store_no;

-- name: insert_terminal
-- A till; answers its number, or nothing when the merchant has one of this id.
INSERT INTO terminal (merchant_no, terminal_id, store_no) VALUES ($1, $2, $3)
ON CONFLICT (merchant_no, terminal_id) DO NOTHING RETURNING terminal_no;

-- name: merchant_no
-- The number of an enrolled merchant.
SELECT merchant_no FROM merchant WHERE merchant_id = $1;

-- name: store_no
-- The number of a store.
SELECT store_no FROM store WHERE merchant_no = $1 AND store_id = $2;

-- name: terminal_no
-- The number of a terminal.
SELECT terminal_no FROM terminal WHERE merchant_no = $1 AND terminal_id = $2;

-- name: lock_merchant
-- How a merchant stands, kept so until the transaction ends.
SELECT suspended, suspended_until FROM merchant WHERE merchant_no = $1 FOR UPDATE;

-- name: lock_store
-- How a store stands, kept so until the transaction ends.
SELECT suspended, NULL::timestamptz AS suspended_until FROM store WHERE store_no = $1 FOR UPDATE;

-- name: lock_terminal
-- How a terminal stands, kept so until the transaction ends.
SELECT suspended, NULL::timestamptz AS suspended_until FROM terminal WHERE terminal_no = $1 FOR UPDATE;

-- name: set_merchant
-- Suspends or resumes a merchant.
UPDATE merchant SET suspended = $2, suspended_until = $3 WHERE merchant_no = $1;

-- name: set_store
-- Suspends or resumes a store.
UPDATE store SET suspended = $2 WHERE store_no = $1;

-- name: set_terminal
-- Suspends or resumes a terminal.
UPDATE terminal SET suspended = $2 WHERE terminal_no = $1;

-- name: insert_change
-- Who suspended or resumed what, and why.
INSERT INTO standing_change (merchant_no, store_no, terminal_no, verb, until, why, changed_by, changed_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8);

-- name: merchant
-- A merchant as it stands at a time.
SELECT m.merchant_no, m.merchant_id, m.name, m.category, m.district, m.payee_name, m.payee_account, m.payee_bank,
       m.suspended AND coalesce(m.suspended_until > $2::timestamptz, true) AS suspended,
       CASE WHEN m.suspended_until > $2::timestamptz THEN m.suspended_until END AS suspended_until,
       (SELECT c.why FROM standing_change c WHERE c.merchant_no = m.merchant_no AND num_nonnulls(c.store_no, c.terminal_no) = 0
           AND c.verb = 'SUSPEND' AND m.suspended AND coalesce(m.suspended_until > $2::timestamptz, true)
         ORDER BY c.change_no DESC LIMIT 1) AS suspended_why
  FROM merchant m WHERE m.merchant_no = $1;

-- name: stores
-- The stores of a merchant.
SELECT store_no, store_id, name, district, address, category, suspended FROM store WHERE merchant_no = $1 ORDER BY store_id;

-- name: terminals
-- The terminals of a merchant, each with its store's id.
SELECT t.terminal_no, t.terminal_id, s.store_id, t.suspended OR coalesce(s.suspended, false) AS suspended
  FROM terminal t LEFT JOIN store s USING (store_no) WHERE t.merchant_no = $1 ORDER BY t.terminal_id;

-- name: keys
-- Keys of a merchant that are not revoked and not over at a time, the oldest first.
SELECT k.serial_no, k.terminal_no, k.algorithm, k.not_before, k.not_after
  FROM api_key k JOIN terminal t USING (terminal_no)
 WHERE t.merchant_no = $1 AND k.holder_kind = 'merchant' AND k.revoked_at IS NULL AND k.not_after > $2
 ORDER BY k.not_before, k.serial_no;

-- name: key_row
-- Whose a key is; merchants' keys only.
SELECT k.serial_no, k.holder_id AS merchant_id, t.terminal_no, t.terminal_id, k.revoked_at
  FROM api_key k JOIN terminal t USING (terminal_no) WHERE k.serial_no = $1 AND k.holder_kind = 'merchant';

-- name: changes
-- What was done to a merchant, its stores, terminals and keys, in order.
SELECT c.changed_at, c.verb, coalesce('store ' || s.store_id, 'terminal ' || t.terminal_id, 'merchant') AS what,
       c.changed_by::text, c.why, c.until
  FROM standing_change c LEFT JOIN store s USING (store_no) LEFT JOIN terminal t USING (terminal_no) WHERE c.merchant_no = $1
UNION ALL
SELECT c.changed_at, c.verb || ' KEY', 'key ' || c.serial_no, coalesce(c.changed_by::text, 'the merchant'), c.why, NULL
  FROM key_change c JOIN api_key k USING (serial_no) JOIN terminal t ON t.terminal_no = k.terminal_no WHERE t.merchant_no = $1
 ORDER BY 1;

-- name: papers
-- The papers of an application.
SELECT kind, number, holder, valid_from, valid_until, encode(sha256, 'hex') AS sha256 FROM merchant_paper
 WHERE application_no = $1 ORDER BY paper_no;

-- name: list
-- Every merchant and every applicant at a time: how it stands, and when its first paper runs out.
WITH newest AS (
    SELECT DISTINCT ON (merchant_id) application_no, merchant_id, state::text, document::jsonb ->> 'name' AS name, merchant_no
      FROM merchant_application ORDER BY merchant_id, application_no DESC
)
SELECT coalesce(m.merchant_id, n.merchant_id) AS merchant_id, coalesce(m.name, n.name) AS name,
       CASE WHEN m.merchant_no IS NULL THEN n.state
            WHEN m.suspended AND coalesce(m.suspended_until > $1::timestamptz, true) THEN 'SUSPENDED' ELSE 'ACTIVE' END AS standing,
       (SELECT count(*) FROM store s WHERE s.merchant_no = m.merchant_no) AS stores,
       (SELECT count(*) FROM terminal t WHERE t.merchant_no = m.merchant_no) AS terminals,
       (SELECT min(p.valid_until) FROM merchant_paper p WHERE p.application_no = n.application_no AND p.is_live) AS papers_until
  FROM merchant m FULL JOIN newest n USING (merchant_id) ORDER BY 1;

-- name: add_key
-- A terminal's first key, or the one after; see the function.
SELECT outcome, not_after, old_not_after FROM add_terminal_key($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: register_own_key
-- A merchant's own new public key; see the function.
SELECT outcome, not_after, old_not_after FROM register_own_key($1, $2, $3, $4);

-- name: revoke_key
-- Revokes a key, and every key that the merchant itself registered with it: who holds a stolen key may have done that.
WITH RECURSIVE lost AS (
    SELECT k.serial_no FROM api_key k WHERE k.serial_no = $1 AND k.holder_kind = 'merchant'
    UNION
    SELECT c.serial_no FROM lost l JOIN key_change c ON c.old_serial_no = l.serial_no
     WHERE c.verb = 'ROTATE' AND c.changed_by IS NULL
), revoked AS (
    UPDATE api_key k SET revoked_at = $4 FROM lost l WHERE k.serial_no = l.serial_no AND k.revoked_at IS NULL RETURNING k.serial_no
)
INSERT INTO key_change (serial_no, verb, changed_by, why, changed_at)
SELECT serial_no, 'REVOKE', $2::text, $3, $4 FROM revoked RETURNING serial_no;
