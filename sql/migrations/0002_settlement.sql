-- ---------------------------------------------------------------- settlement: paying the merchants
-- One batch a campaign at a time: proposed by one person, decided by another, sent to the bank, answered
-- by it. Nothing here is ever changed; how a line stands is read from what was added after it
-- (view settlement_line_state). Money moves only through the functions below: no role may post a
-- SETTLE_* transfer itself, so none can pay a line that two people have not agreed on.

CREATE DOMAIN staff_name AS text
    CHECK (VALUE ~ '^\S([^[:cntrl:]]{0,62}\S)?$' AND VALUE IS NFKC NORMALIZED);
COMMENT ON DOMAIN staff_name IS 'Who did it. Compatibility-normalised, so that one person cannot sign as two by typing wide letters.';

CREATE TYPE bank_outcome AS ENUM ('PAID', 'REJECTED');

CREATE TABLE settlement_batch (
    batch_no           integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    batch_id           text NOT NULL GENERATED ALWAYS AS ('HQS' || lpad(batch_no::text, 10, '0')) STORED,
    campaign_no        smallint NOT NULL REFERENCES campaign,
    day                date NOT NULL,
    previous_batch_no  integer,
    last_transfer_id   bigint NOT NULL,
    proposed_by        staff_name NOT NULL,
    proposed_at        timestamptz NOT NULL,
    UNIQUE (batch_no, proposed_by),
    UNIQUE (batch_no, campaign_no),
    CONSTRAINT one_undecided_batch UNIQUE NULLS NOT DISTINCT (campaign_no, previous_batch_no)
);
COMMENT ON COLUMN settlement_batch.previous_batch_no IS 'The campaign''s batch before this one. It must be decided, and it has one '
    'successor only: so there is never more than one undecided batch.';
COMMENT ON COLUMN settlement_batch.last_transfer_id IS 'Settlement transfers up to this one were booked before the batch was drawn up.';

CREATE TABLE settlement_decision (
    batch_no     integer PRIMARY KEY,
    campaign_no  smallint NOT NULL,
    proposed_by  staff_name NOT NULL,
    decided_by   staff_name NOT NULL,
    is_approved  boolean NOT NULL,
    why          text NOT NULL DEFAULT '' CHECK (length(why) <= 500),
    decided_at   timestamptz NOT NULL,
    UNIQUE (batch_no, campaign_no),
    UNIQUE (batch_no, is_approved),
    FOREIGN KEY (batch_no, proposed_by) REFERENCES settlement_batch (batch_no, proposed_by),
    FOREIGN KEY (batch_no, campaign_no) REFERENCES settlement_batch (batch_no, campaign_no),
    CONSTRAINT two_people CHECK (NOT is_approved OR lower(decided_by) <> lower(proposed_by)),
    CONSTRAINT rejection_says_why CHECK (is_approved OR why <> '')
);
ALTER TABLE settlement_batch ADD CONSTRAINT previous_is_decided
    FOREIGN KEY (previous_batch_no, campaign_no) REFERENCES settlement_decision (batch_no, campaign_no);

CREATE TABLE settlement_line (
    batch_no        integer NOT NULL REFERENCES settlement_batch,
    line_no         integer NOT NULL CHECK (line_no > 0),
    merchant_no     integer NOT NULL REFERENCES merchant,
    opening_fen     bigint NOT NULL,
    settled_fen     bigint NOT NULL,
    voided_fen      bigint NOT NULL,
    carried_fen     bigint NOT NULL GENERATED ALWAYS AS (opening_fen - settled_fen + voided_fen) STORED,
    redeemed_count  bigint NOT NULL CHECK (redeemed_count >= 0),
    redeemed_fen    bigint NOT NULL CHECK (redeemed_fen >= 0),
    refunded_count  bigint NOT NULL CHECK (refunded_count >= 0),
    refunded_fen    bigint NOT NULL CHECK (refunded_fen >= 0),
    amount_fen      bigint NOT NULL CHECK (amount_fen > 0),
    payee_name      text NOT NULL,
    payee_account   text NOT NULL,
    payee_bank      text NOT NULL,
    PRIMARY KEY (batch_no, line_no),
    UNIQUE (batch_no, merchant_no),
    CONSTRAINT adds_up CHECK (amount_fen = opening_fen - settled_fen + voided_fen + redeemed_fen - refunded_fen)
);
CREATE INDEX settlement_line_merchant ON settlement_line (merchant_no);
COMMENT ON TABLE settlement_line IS 'What one merchant is owed at the close of the batch''s day.';
COMMENT ON COLUMN settlement_line.opening_fen IS 'Owed when the last approved batch was drawn up; may be negative.';
COMMENT ON COLUMN settlement_line.settled_fen IS 'Of that, what the last approved batch took.';
COMMENT ON COLUMN settlement_line.voided_fen IS 'What the bank sent back since, of any batch.';
COMMENT ON COLUMN settlement_line.carried_fen IS 'What is left of it: held back, sent back by the bank, or a debt from refunds (negative).';

CREATE TABLE settlement_share (
    batch_no    integer NOT NULL,
    line_no     integer NOT NULL,
    bucket      smallint NOT NULL,
    amount_fen  bigint NOT NULL CHECK (amount_fen <> 0),
    PRIMARY KEY (batch_no, line_no, bucket),
    FOREIGN KEY (batch_no, line_no) REFERENCES settlement_line
);
COMMENT ON TABLE settlement_share IS 'The part of a line that each bucket''s PAYABLE gives; negative where refunds outweigh. They add up to the line.';

CREATE TABLE settlement_line_held (
    batch_no  integer NOT NULL,
    line_no   integer NOT NULL,
    hold_id   bigint NOT NULL REFERENCES merchant_hold,
    seen_at   text NOT NULL CHECK (seen_at IN ('PROPOSAL', 'APPROVAL')),
    PRIMARY KEY (batch_no, line_no),
    FOREIGN KEY (batch_no, line_no) REFERENCES settlement_line
);
COMMENT ON TABLE settlement_line_held IS 'Lines that a hold keeps out of the batch. Their money never moves; it comes again in a later batch.';

CREATE TABLE settlement_export (
    batch_no     integer NOT NULL,
    is_approved  boolean NOT NULL DEFAULT true CHECK (is_approved),
    format       text NOT NULL CHECK (format IN ('csv', 'csv-spreadsheet', 'pain.001.001.09')),
    sha256       bytea NOT NULL CHECK (octet_length(sha256) = 32),
    exported_by  staff_name NOT NULL,
    exported_at  timestamptz NOT NULL,
    PRIMARY KEY (batch_no, format),
    FOREIGN KEY (batch_no, is_approved) REFERENCES settlement_decision (batch_no, is_approved)
);
COMMENT ON TABLE settlement_export IS 'Files made for the bank. A file of one batch and format is always the same, byte for byte.';

-- What the bank says. Any of its files that could be read is kept for reconciliation; only a file that
-- fits its batch in every line is imported, and only an imported one moves money.
CREATE TABLE bank_file (
    bank_file_no  integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    batch_no      integer NOT NULL REFERENCES settlement_batch,
    sha256        bytea NOT NULL UNIQUE CHECK (octet_length(sha256) = 32),
    order_sha256  bytea NOT NULL CHECK (octet_length(order_sha256) = 32),
    row_count     integer NOT NULL CHECK (row_count >= 0),
    amount_fen    bigint NOT NULL CHECK (amount_fen >= 0),
    received_at   timestamptz NOT NULL,
    UNIQUE (bank_file_no, batch_no)
);
COMMENT ON COLUMN bank_file.order_sha256 IS 'Hash of the file of ours that the bank says it answers.';

CREATE TABLE bank_row (
    bank_file_no    integer NOT NULL REFERENCES bank_file,
    row_no          integer NOT NULL,
    line_no         integer NOT NULL,
    payee_account   text NOT NULL,
    amount_fen      bigint NOT NULL CHECK (amount_fen > 0),
    outcome         bank_outcome NOT NULL,
    booked_on       date NOT NULL,
    bank_reference  text NOT NULL,
    reason          text NOT NULL,
    PRIMARY KEY (bank_file_no, row_no)
);

CREATE TABLE bank_import (
    bank_file_no  integer PRIMARY KEY REFERENCES bank_file,
    imported_by   staff_name NOT NULL,
    imported_at   timestamptz NOT NULL
);

CREATE TABLE settlement_answer (
    batch_no      integer NOT NULL,
    line_no       integer NOT NULL,
    bank_file_no  integer NOT NULL,
    row_no        integer NOT NULL,
    outcome       bank_outcome NOT NULL,
    answered_at   timestamptz NOT NULL,
    PRIMARY KEY (batch_no, line_no),
    FOREIGN KEY (batch_no, line_no) REFERENCES settlement_line,
    FOREIGN KEY (bank_file_no, batch_no) REFERENCES bank_file (bank_file_no, batch_no),
    FOREIGN KEY (bank_file_no, row_no) REFERENCES bank_row
);
COMMENT ON TABLE settlement_answer IS 'PAID: the line''s money went SETTLING -> PAID. REJECTED: it went back to PAYABLE. A line is answered once.';

-- Unused money leaves RETURNED: to the city's fund, or into the next round.
CREATE TABLE fund_return (
    campaign_no  smallint NOT NULL REFERENCES campaign,
    reference    text NOT NULL CHECK (length(reference) BETWEEN 1 AND 80),
    credit       account_kind NOT NULL CHECK (credit IN ('CITY_FUND', 'BUDGET')),
    amount_fen   bigint NOT NULL CHECK (amount_fen > 0),
    returned_by  staff_name NOT NULL,
    returned_at  timestamptz NOT NULL,
    PRIMARY KEY (campaign_no, reference)
);

CREATE VIEW settlement_line_state AS
    SELECT l.batch_no, b.batch_id, b.campaign_no, b.day, l.line_no, l.merchant_no, m.merchant_id, l.opening_fen, l.settled_fen,
           l.voided_fen, l.carried_fen, l.redeemed_count, l.redeemed_fen, l.refunded_count, l.refunded_fen, l.amount_fen,
           l.payee_name, l.payee_account, l.payee_bank,
           CASE WHEN NOT d.is_approved THEN 'DROPPED'
                WHEN k.hold_id IS NOT NULL THEN 'HELD'
                WHEN d.is_approved IS NULL THEN 'PROPOSED'
                WHEN a.outcome IS NULL THEN 'SETTLING'
                ELSE a.outcome::text END AS state,
           CASE WHEN k.hold_id IS NOT NULL THEN h.reason_code ELSE '' END AS held_code,
           CASE WHEN k.hold_id IS NOT NULL THEN h.reason ELSE coalesce(w.reason, '') END AS reason,
           coalesce(w.bank_reference, '') AS bank_reference, w.booked_on AS bank_booked_on,
           CASE WHEN d.is_approved THEN d.decided_at END AS approved_at, a.answered_at
      FROM settlement_line l
      JOIN settlement_batch b USING (batch_no)
      JOIN merchant m USING (merchant_no)
      LEFT JOIN settlement_decision d USING (batch_no)
      LEFT JOIN settlement_line_held k USING (batch_no, line_no)
      LEFT JOIN merchant_hold h ON h.hold_id = k.hold_id
      LEFT JOIN settlement_answer a USING (batch_no, line_no)
      LEFT JOIN bank_row w ON w.bank_file_no = a.bank_file_no AND w.row_no = a.row_no;
COMMENT ON VIEW settlement_line_state IS 'PROPOSED -> SETTLING -> PAID or REJECTED (by the bank); HELD: kept out; DROPPED: the batch was turned down.';

CREATE VIEW settlement_batch_state AS
    SELECT b.batch_no, b.batch_id, b.campaign_no, b.day, b.proposed_by, b.proposed_at,
           d.decided_by, d.decided_at, coalesce(d.why, '') AS why, s.line_count, s.amount_fen, s.held_count, s.held_fen, s.paid_count,
           s.paid_fen, s.rejected_count, s.rejected_fen,
           CASE WHEN NOT d.is_approved THEN 'REJECTED'
                WHEN d.is_approved IS NULL THEN 'PROPOSED'
                WHEN s.paid_count + s.rejected_count = s.line_count THEN 'ANSWERED'
                WHEN EXISTS (SELECT FROM settlement_export e WHERE e.batch_no = b.batch_no) THEN 'EXPORTED'
                ELSE 'APPROVED' END AS state
      FROM settlement_batch b
      LEFT JOIN settlement_decision d USING (batch_no)
      CROSS JOIN LATERAL (
          SELECT count(*) FILTER (WHERE l.state <> 'HELD') AS line_count,
                 coalesce(sum(l.amount_fen) FILTER (WHERE l.state <> 'HELD'), 0)::bigint AS amount_fen,
                 count(*) FILTER (WHERE l.state = 'HELD') AS held_count,
                 coalesce(sum(l.amount_fen) FILTER (WHERE l.state = 'HELD'), 0)::bigint AS held_fen,
                 count(*) FILTER (WHERE l.state = 'PAID') AS paid_count,
                 coalesce(sum(l.amount_fen) FILTER (WHERE l.state = 'PAID'), 0)::bigint AS paid_fen,
                 count(*) FILTER (WHERE l.state = 'REJECTED') AS rejected_count,
                 coalesce(sum(l.amount_fen) FILTER (WHERE l.state = 'REJECTED'), 0)::bigint AS rejected_fen
            FROM settlement_line_state l WHERE l.batch_no = b.batch_no) s;

-- The functions below work on ten thousand lines at a time. Their plans may have been made when the tables
-- were small; enable_nestloop = off keeps such a plan from visiting every line for every line.

-- One at a time in the finance office of a campaign: drawing up, deciding, answering, returning.
CREATE FUNCTION lock_settlement(p_campaign_no smallint) RETURNS void
    LANGUAGE sql AS $$ SELECT pg_advisory_xact_lock(4819, p_campaign_no) $$;

-- What each merchant of a campaign is owed, told twice: from the checkpoint (owed_fen) and from the
-- history behind it (opening - settled + voided + redeemed - refunded). Days not closed do not count.
CREATE FUNCTION settlement_position(p_campaign_no smallint)
    RETURNS TABLE (merchant_no integer, opening_fen bigint, settled_fen bigint, voided_fen bigint, redeemed_count bigint,
                   redeemed_fen bigint, refunded_count bigint, refunded_fen bigint, owed_fen bigint)
    LANGUAGE sql STABLE AS $$
    WITH last AS (
        SELECT coalesce(max(b.day), '-infinity') AS day, coalesce(max(b.last_transfer_id), 0) AS transfer_id
          FROM settlement_batch b JOIN settlement_decision d USING (batch_no)
         WHERE b.campaign_no = p_campaign_no AND d.is_approved
    ), movement AS (
        SELECT m.merchant_no, CASE WHEN m.day <= last.day THEN m.redeemed_fen - m.refunded_fen ELSE 0 END AS opening,
               0::bigint AS settled, 0::bigint AS voided,
               CASE WHEN m.day > last.day THEN m.redeemed_count ELSE 0 END AS redeemed_count,
               CASE WHEN m.day > last.day THEN m.redeemed_fen ELSE 0 END AS redeemed,
               CASE WHEN m.day > last.day THEN m.refunded_count ELSE 0 END AS refunded_count,
               CASE WHEN m.day > last.day THEN m.refunded_fen ELSE 0 END AS refunded, 0::bigint AS owed
          FROM merchant_day m CROSS JOIN last WHERE m.campaign_no = p_campaign_no
        UNION ALL
        SELECT t.merchant_no, CASE WHEN t.transfer_id <= last.transfer_id THEN -x.out_fen ELSE 0 END,
               CASE WHEN t.transfer_id > last.transfer_id AND t.kind = 'SETTLE_HOLD' THEN x.out_fen ELSE 0 END,
               CASE WHEN t.transfer_id > last.transfer_id AND t.kind = 'SETTLE_VOID' THEN -x.out_fen ELSE 0 END, 0, 0, 0, 0, 0
          FROM transfer t CROSS JOIN last
         CROSS JOIN LATERAL (SELECT CASE WHEN t.debit = 'PAYABLE' THEN t.amount_fen ELSE -t.amount_fen END AS out_fen) x
         WHERE t.campaign_no = p_campaign_no AND t.kind IN ('SETTLE_HOLD', 'SETTLE_VOID')
        UNION ALL
        SELECT a.merchant_no, 0, 0, 0, 0, 0, 0, 0, a.credits_fen - a.debits_fen
          FROM account a WHERE a.campaign_no = p_campaign_no AND a.kind = 'PAYABLE'
    )
    SELECT merchant_no, sum(opening)::bigint, sum(settled)::bigint, sum(voided)::bigint, sum(redeemed_count)::bigint,
           sum(redeemed)::bigint, sum(refunded_count)::bigint, sum(refunded)::bigint, sum(owed)::bigint
      FROM movement GROUP BY merchant_no
$$;

-- Draws up a batch: one line for each merchant that is owed something. refusal is null when it worked.
-- Refused, with nothing written, unless every bucket is closed up to the day and no further: a later
-- day's sales would otherwise be paid under this day's name.
CREATE FUNCTION propose_settlement(p_campaign_no smallint, p_day date, p_by text, p_at timestamptz,
                                   OUT refusal text, OUT detail text, OUT batch_no integer)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET enable_nestloop = off AS $$
DECLARE
    v_previous integer;
    v_found    record;
BEGIN
    PERFORM lock_settlement(p_campaign_no);
    v_previous := (SELECT max(b.batch_no) FROM settlement_batch b WHERE b.campaign_no = p_campaign_no);
    IF v_previous IS NOT NULL AND NOT EXISTS (SELECT FROM settlement_decision d WHERE d.batch_no = v_previous) THEN
        refusal := 'UNDECIDED_BATCH';
        detail := format('batch %s is not decided yet', v_previous);
        RETURN;
    END IF;
    -- One statement, so one picture: days closed, balances and history are seen at the same moment.
    WITH closed AS MATERIALIZED (
        SELECT count(*) = (SELECT c.buckets FROM city c) AND bool_and(d.day = p_day) AS is_exact, max(d.day) AS latest
          FROM (SELECT max(c.day) AS day FROM day_close c GROUP BY c.bucket) d
    ), owed AS MATERIALIZED (
        SELECT o.*, h.hold_id, o.owed_fen = o.opening_fen - o.settled_fen + o.voided_fen + o.redeemed_fen - o.refunded_fen AS adds_up
          FROM settlement_position(p_campaign_no) o
          LEFT JOIN (SELECT k.merchant_no, min(k.hold_id) AS hold_id FROM merchant_held k GROUP BY k.merchant_no) h USING (merchant_no)
    ), verdict AS MATERIALIZED (
        SELECT coalesce(c.is_exact, false) AS is_exact, c.latest, count(*) FILTER (WHERE NOT o.adds_up) AS wrong,
               min(o.merchant_no) FILTER (WHERE NOT o.adds_up) AS wrong_merchant_no,
               count(*) FILTER (WHERE o.owed_fen > 0 AND o.hold_id IS NULL) AS payable,
               count(*) FILTER (WHERE o.owed_fen > 0 AND o.hold_id IS NOT NULL) AS held
          FROM closed c LEFT JOIN owed o ON true GROUP BY c.is_exact, c.latest
    ), batch AS (
        INSERT INTO settlement_batch (campaign_no, day, previous_batch_no, last_transfer_id, proposed_by, proposed_at)
        SELECT p_campaign_no, p_day, v_previous, coalesce((SELECT max(t.transfer_id) FROM transfer t), 0), p_by, p_at
          FROM verdict v WHERE v.is_exact AND v.wrong = 0 AND v.payable > 0
        RETURNING settlement_batch.batch_no
    ), line AS (
        INSERT INTO settlement_line (batch_no, line_no, merchant_no, opening_fen, settled_fen, voided_fen, redeemed_count,
                                     redeemed_fen, refunded_count, refunded_fen, amount_fen, payee_name, payee_account, payee_bank)
        SELECT b.batch_no, row_number() OVER (ORDER BY m.merchant_id COLLATE "C"), o.merchant_no, o.opening_fen, o.settled_fen,
               o.voided_fen, o.redeemed_count, o.redeemed_fen, o.refunded_count, o.refunded_fen, o.owed_fen,
               m.payee_name, m.payee_account, m.payee_bank
          FROM batch b CROSS JOIN owed o JOIN merchant m USING (merchant_no) WHERE o.owed_fen > 0
        RETURNING settlement_line.batch_no, settlement_line.line_no, settlement_line.merchant_no
    ), share AS (
        INSERT INTO settlement_share (batch_no, line_no, bucket, amount_fen)
        SELECT l.batch_no, l.line_no, a.bucket, a.credits_fen - a.debits_fen
          FROM line l JOIN account a ON a.campaign_no = p_campaign_no AND a.merchant_no = l.merchant_no AND a.kind = 'PAYABLE'
         WHERE a.credits_fen <> a.debits_fen
    ), held AS (
        INSERT INTO settlement_line_held (batch_no, line_no, hold_id, seen_at)
        SELECT l.batch_no, l.line_no, o.hold_id, 'PROPOSAL' FROM line l JOIN owed o USING (merchant_no) WHERE o.hold_id IS NOT NULL
    )
    SELECT v.*, (SELECT b.batch_no FROM batch b) AS batch_no INTO v_found FROM verdict v;
    batch_no := v_found.batch_no;
    IF NOT v_found.is_exact THEN
        refusal := 'DAY_NOT_EXACT';
        detail := format('the last closed day is %s, not %s in every bucket', coalesce(v_found.latest::text, 'none'), p_day);
    ELSIF v_found.wrong > 0 THEN
        refusal := 'LEDGER_MISMATCH';
        detail := format('balance and history differ for %s merchants, the first is %s', v_found.wrong, v_found.wrong_merchant_no);
    ELSIF v_found.payable = 0 THEN
        refusal := 'NOTHING_TO_PAY';
        detail := format('no merchant is owed anything that may be paid (%s held)', v_found.held);
    END IF;
END $$;

-- Approves or rejects a batch. Approval books PAYABLE -> SETTLING for each line that no hold keeps out,
-- bucket by bucket; a bucket where refunds outweigh gives the other way, so that the sum is the line.
CREATE FUNCTION decide_settlement(p_batch_no integer, p_is_approved boolean, p_by text, p_why text, p_at timestamptz,
                                  OUT refusal text, OUT detail text)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET enable_nestloop = off AS $$
DECLARE
    v_batch settlement_batch;
    v_done  settlement_decision;
BEGIN
    SELECT * INTO v_batch FROM settlement_batch WHERE batch_no = p_batch_no;
    IF v_batch.batch_no IS NULL THEN
        refusal := 'UNKNOWN_BATCH';
        detail := format('there is no batch %s', p_batch_no);
        RETURN;
    END IF;
    PERFORM lock_settlement(v_batch.campaign_no);
    SELECT * INTO v_done FROM settlement_decision WHERE batch_no = p_batch_no;
    IF v_done.batch_no IS NOT NULL THEN
        refusal := 'ALREADY_DECIDED';
        detail := format('%s by %s', CASE WHEN v_done.is_approved THEN 'approved' ELSE 'rejected' END, v_done.decided_by);
        RETURN;
    END IF;
    IF p_is_approved AND lower(p_by) = lower(v_batch.proposed_by) THEN
        refusal := 'SAME_PERSON';
        detail := format('%s proposed batch %s; someone else must approve it', v_batch.proposed_by, p_batch_no);
        RETURN;
    END IF;
    INSERT INTO settlement_decision (batch_no, campaign_no, proposed_by, decided_by, is_approved, why, decided_at)
    VALUES (p_batch_no, v_batch.campaign_no, v_batch.proposed_by, p_by, p_is_approved, p_why, p_at);
    IF p_is_approved THEN
        INSERT INTO settlement_line_held (batch_no, line_no, hold_id, seen_at)
        SELECT l.batch_no, l.line_no, min(h.hold_id), 'APPROVAL'
          FROM settlement_line l JOIN merchant_held h USING (merchant_no)
         WHERE l.batch_no = p_batch_no
           AND NOT EXISTS (SELECT FROM settlement_line_held k WHERE k.batch_no = l.batch_no AND k.line_no = l.line_no)
         GROUP BY l.batch_no, l.line_no;
        INSERT INTO transfer (bucket, campaign_no, merchant_no, kind, debit, credit, amount_fen, reference, booked_at)
        SELECT s.bucket, l.campaign_no, l.merchant_no, 'SETTLE_HOLD',
               CASE WHEN s.amount_fen > 0 THEN 'PAYABLE' ELSE 'SETTLING' END::account_kind,
               CASE WHEN s.amount_fen > 0 THEN 'SETTLING' ELSE 'PAYABLE' END::account_kind,
               abs(s.amount_fen), format('batch %s line %s bucket %s', s.batch_no, s.line_no, s.bucket), p_at
          FROM settlement_line_state l JOIN settlement_share s USING (batch_no, line_no)
         WHERE l.batch_no = p_batch_no AND l.state = 'SETTLING' ORDER BY s.line_no, s.bucket;
    END IF;
END $$;

-- Imports a bank file that is already in bank_file and bank_row: the whole of it or nothing.
-- refusal is null when it worked, 'REPLAYED' when this very file was imported before.
CREATE FUNCTION answer_settlement(p_bank_file_no integer, p_by text, p_at timestamptz, OUT refusal text, OUT detail text)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET enable_nestloop = off AS $$
DECLARE
    v_file  bank_file;
    v_batch settlement_batch_state;
BEGIN
    SELECT * INTO STRICT v_file FROM bank_file WHERE bank_file_no = p_bank_file_no;
    PERFORM lock_settlement((SELECT b.campaign_no FROM settlement_batch b WHERE b.batch_no = v_file.batch_no));
    SELECT * INTO STRICT v_batch FROM settlement_batch_state WHERE batch_no = v_file.batch_no;
    IF EXISTS (SELECT FROM bank_import i WHERE i.bank_file_no = p_bank_file_no) THEN
        refusal := 'REPLAYED';
        detail := 'this file was imported before; nothing was booked again';
        RETURN;
    END IF;
    IF v_batch.state IN ('PROPOSED', 'REJECTED') THEN
        refusal := 'NOT_APPROVED';
        detail := format('batch %s is not approved', v_file.batch_no);
        RETURN;
    END IF;
    IF NOT EXISTS (SELECT FROM settlement_export e WHERE e.batch_no = v_file.batch_no AND e.sha256 = v_file.order_sha256) THEN
        refusal := 'WRONG_ORDER_HASH';
        detail := format('the file answers %s, which is no file that we made of batch %s', encode(v_file.order_sha256, 'hex'), v_file.batch_no);
        RETURN;
    END IF;
    SELECT x.refusal, format('row %s, line %s: %s', x.row_no, x.line_no, x.detail) INTO refusal, detail
      FROM (SELECT w.row_no, w.line_no, CASE
                WHEN l.line_no IS NULL OR l.state = 'HELD' THEN 'UNKNOWN_LINE'
                WHEN row_number() OVER (PARTITION BY w.line_no ORDER BY w.row_no) > 1 THEN 'DUPLICATE_LINE'
                WHEN l.amount_fen <> w.amount_fen THEN 'WRONG_AMOUNT'
                WHEN l.payee_account <> w.payee_account THEN 'WRONG_PAYEE'
                WHEN l.state <> 'SETTLING' THEN 'ALREADY_ANSWERED' END AS refusal, CASE
                WHEN l.line_no IS NULL THEN 'the batch has no such line'
                WHEN l.state = 'HELD' THEN 'the line was held and never sent'
                WHEN l.amount_fen <> w.amount_fen THEN format('%s fen answered, %s fen asked', w.amount_fen, l.amount_fen)
                WHEN l.payee_account <> w.payee_account THEN 'another account than asked'
                WHEN l.state <> 'SETTLING' THEN 'answered by an earlier file: ' || l.state
                ELSE 'the line stands in the file twice' END AS detail
              FROM bank_row w LEFT JOIN settlement_line_state l ON l.batch_no = v_file.batch_no AND l.line_no = w.line_no
             WHERE w.bank_file_no = p_bank_file_no) x
     WHERE x.refusal IS NOT NULL ORDER BY x.row_no LIMIT 1;
    IF refusal IS NOT NULL THEN
        RETURN;
    END IF;
    INSERT INTO bank_import (bank_file_no, imported_by, imported_at) VALUES (p_bank_file_no, p_by, p_at);
    INSERT INTO settlement_answer (batch_no, line_no, bank_file_no, row_no, outcome, answered_at)
    SELECT v_file.batch_no, w.line_no, w.bank_file_no, w.row_no, w.outcome, p_at FROM bank_row w WHERE w.bank_file_no = p_bank_file_no;
    -- One statement for paid and sent back, so that all accounts are taken in one sorted order.
    INSERT INTO transfer (bucket, campaign_no, merchant_no, kind, debit, credit, amount_fen, reference, booked_at)
    SELECT 0, v_batch.campaign_no, l.merchant_no, 'SETTLE_POST'::transfer_kind, 'SETTLING'::account_kind, 'PAID'::account_kind, l.amount_fen,
           format('batch %s line %s', l.batch_no, l.line_no), p_at
      FROM bank_row w JOIN settlement_line l ON l.batch_no = v_file.batch_no AND l.line_no = w.line_no
     WHERE w.bank_file_no = p_bank_file_no AND w.outcome = 'PAID'
    UNION ALL
    SELECT s.bucket, v_batch.campaign_no, l.merchant_no, 'SETTLE_VOID',
           CASE WHEN s.amount_fen > 0 THEN 'SETTLING' ELSE 'PAYABLE' END::account_kind,
           CASE WHEN s.amount_fen > 0 THEN 'PAYABLE' ELSE 'SETTLING' END::account_kind,
           abs(s.amount_fen), format('batch %s line %s bucket %s', s.batch_no, s.line_no, s.bucket), p_at
      FROM bank_row w JOIN settlement_line l ON l.batch_no = v_file.batch_no AND l.line_no = w.line_no
      JOIN settlement_share s ON s.batch_no = l.batch_no AND s.line_no = l.line_no
     WHERE w.bank_file_no = p_bank_file_no AND w.outcome = 'REJECTED';
END $$;

-- Moves unused money out of RETURNED, once for each reference. refusal is null when it worked,
-- 'REPLAYED' when the same return was booked before.
CREATE FUNCTION return_unused(p_campaign_no smallint, p_credit account_kind, p_amount_fen bigint, p_reference text, p_by text,
                              p_at timestamptz, OUT refusal text, OUT detail text)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_done  fund_return;
    v_there bigint;
BEGIN
    PERFORM lock_settlement(p_campaign_no);
    SELECT * INTO v_done FROM fund_return WHERE campaign_no = p_campaign_no AND reference = p_reference;
    IF v_done.reference IS NOT NULL THEN
        refusal := CASE WHEN v_done.credit = p_credit AND v_done.amount_fen = p_amount_fen THEN 'REPLAYED' ELSE 'REFERENCE_USED' END;
        detail := format('%s returned %s fen to %s under this reference', v_done.returned_by, v_done.amount_fen, v_done.credit);
        RETURN;
    END IF;
    v_there := coalesce((SELECT a.credits_fen - a.debits_fen FROM account a WHERE a.bucket = 0 AND a.campaign_no = p_campaign_no
                            AND a.merchant_no = 0 AND a.kind = 'RETURNED' FOR UPDATE), 0);
    IF v_there < p_amount_fen THEN
        refusal := 'NOT_ENOUGH';
        detail := format('RETURNED holds %s fen of closed days', v_there);
        RETURN;
    END IF;
    INSERT INTO fund_return (campaign_no, reference, credit, amount_fen, returned_by, returned_at)
    VALUES (p_campaign_no, p_reference, p_credit, p_amount_fen, p_by, p_at);
    INSERT INTO transfer (bucket, campaign_no, kind, debit, credit, amount_fen, reference, booked_at)
    VALUES (0, p_campaign_no, 'RETURN', 'RETURNED', p_credit, p_amount_fen, format('return %s %s', p_campaign_no, p_reference), p_at);
END $$;

-- ---------------------------------------------------------------- reconciliation: our books against theirs
-- A break is a difference between what we booked and what a partner or the bank says. Breaks are
-- found by pure functions of the rows on both sides; what a run adds is only what the runs before it
-- did not know, and closures of what is gone. Partners' rows are kept: they are half of the proof.

CREATE TYPE flow_kind AS ENUM ('REDEEM', 'REFUND');
CREATE TYPE break_source AS ENUM ('PARTNER', 'BANK');
CREATE TYPE break_kind AS ENUM (
    'MISSING_HERE',   -- they have it, we do not
    'MISSING_THERE',  -- we have it, they do not
    'AMOUNT',         -- both have it, with different money
    'STATE',          -- both have it, but not how it ended
    'DUPLICATE',      -- they say it more than once
    'LATE'            -- both have it, on different days
);

CREATE TABLE flow_file (
    file_no      integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    partner_no   smallint NOT NULL REFERENCES partner,
    campaign_no  smallint NOT NULL REFERENCES campaign,
    day          date NOT NULL,
    row_count    integer NOT NULL CHECK (row_count >= 0),
    amount_fen   bigint NOT NULL CHECK (amount_fen >= 0),
    sha256       bytea NOT NULL UNIQUE CHECK (octet_length(sha256) = 32),
    received_at  timestamptz NOT NULL
);

-- No foreign key to flow_file: its check would be paid for each of a day's hundred thousands of rows.
CREATE TABLE flow_row (
    file_no            integer NOT NULL,
    line_no            integer NOT NULL,
    bill_fen           bigint NOT NULL,
    subsidy_fen        bigint NOT NULL,
    occurred_at        timestamptz NOT NULL,
    kind               flow_kind NOT NULL,
    merchant_id        text COLLATE "C" NOT NULL,
    use_request_no     text COLLATE "C" NOT NULL,
    refund_request_no  text COLLATE "C" NOT NULL,
    out_request_no     text COLLATE "C" NOT NULL,
    stock_id           text COLLATE "C" NOT NULL,
    voucher_state      text COLLATE "C" NOT NULL,
    PRIMARY KEY (file_no, line_no)
);

CREATE TABLE recon_run (
    run_no          integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    campaign_no     smallint NOT NULL REFERENCES campaign,
    day             date NOT NULL,
    tolerance_days  smallint NOT NULL CHECK (tolerance_days BETWEEN 0 AND 7),
    bank_days       smallint NOT NULL CHECK (bank_days BETWEEN 0 AND 30),
    ran_by          staff_name NOT NULL,
    ran_at          timestamptz NOT NULL
);
COMMENT ON COLUMN recon_run.tolerance_days IS 'A row that a partner books this many days apart from us is LATE, and beyond that missing.';
COMMENT ON COLUMN recon_run.bank_days IS 'Days after approval within which the bank should have answered.';

CREATE TABLE recon_run_flow (
    run_no   integer NOT NULL REFERENCES recon_run,
    file_no  integer NOT NULL REFERENCES flow_file,
    PRIMARY KEY (run_no, file_no)
);
CREATE TABLE recon_run_bank (
    run_no        integer NOT NULL REFERENCES recon_run,
    bank_file_no  integer NOT NULL REFERENCES bank_file,
    PRIMARY KEY (run_no, bank_file_no)
);

CREATE TABLE recon_break (
    break_no     bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    run_no       integer NOT NULL REFERENCES recon_run,
    source       break_source NOT NULL,
    kind         break_kind NOT NULL,
    owner        text NOT NULL CHECK (owner IN ('CITY', 'PARTNER', 'BANK')),
    campaign_no  smallint NOT NULL REFERENCES campaign,
    partner_no   smallint REFERENCES partner,
    day          date NOT NULL,
    key          text NOT NULL,
    ordinal      integer NOT NULL CHECK (ordinal > 0),
    ours_day     date,
    ours_fen     bigint,
    ours_says    text,
    theirs_day   date,
    theirs_fen   bigint,
    theirs_says  text,
    CHECK ((source = 'PARTNER') = (partner_no IS NOT NULL)),
    CHECK (kind <> 'MISSING_HERE' OR (ours_fen IS NULL AND theirs_fen IS NOT NULL)),
    CHECK (kind <> 'MISSING_THERE' OR (theirs_fen IS NULL AND ours_fen IS NOT NULL)),
    UNIQUE NULLS NOT DISTINCT (run_no, source, partner_no, day, kind, key, ordinal)
);
CREATE INDEX recon_break_day ON recon_break (campaign_no, day);
COMMENT ON COLUMN recon_break.owner IS 'Which side must act next.';
COMMENT ON COLUMN recon_break.key IS 'What it is about: kind, merchant and request numbers, or batch and line.';

CREATE TABLE recon_closure (
    break_no   bigint PRIMARY KEY REFERENCES recon_break,
    cause      text NOT NULL CHECK (cause IN ('PERSON', 'GONE')),
    run_no     integer REFERENCES recon_run,
    closed_by  staff_name NOT NULL,
    why        text NOT NULL CHECK (length(why) BETWEEN 1 AND 500),
    closed_at  timestamptz NOT NULL,
    CHECK ((cause = 'GONE') = (run_no IS NOT NULL))
);
COMMENT ON COLUMN recon_closure.cause IS 'GONE: a later run, with more rows on one side, found no difference any more.';

CREATE VIEW our_flow AS
    SELECT s.partner_no, d.campaign_no, r.booked_on AS day, 'REDEEM'::flow_kind AS kind, m.merchant_id, r.use_request_no,
           '' COLLATE "C" AS refund_request_no, coalesce(v.out_request_no, '') AS out_request_no, s.stock_id, 'USED' AS voucher_state,
           r.bill_fen, r.subsidy_fen, r.redeemed_at AS occurred_at
      FROM redemption r JOIN stock s USING (stock_no) JOIN round d USING (round_no) JOIN merchant m USING (merchant_no)
      LEFT JOIN voucher v ON v.bucket = r.bucket AND v.voucher_id = r.voucher_id
    UNION ALL
    SELECT s.partner_no, d.campaign_no, f.booked_on, 'REFUND', m.merchant_id, r.use_request_no, f.refund_request_no,
           coalesce(v.out_request_no, ''), s.stock_id, CASE WHEN f.credit = 'ISSUED' THEN 'EFFECTIVE' ELSE 'RETURNED' END,
           f.refund_fen, f.subsidy_fen, f.refunded_at
      FROM refund f JOIN redemption r ON r.bucket = f.bucket AND r.voucher_id = f.voucher_id AND r.attempt = f.attempt
      JOIN stock s ON s.stock_no = f.stock_no JOIN round d USING (round_no) JOIN merchant m ON m.merchant_no = f.merchant_no
      LEFT JOIN voucher v ON v.bucket = f.bucket AND v.voucher_id = f.voucher_id;
COMMENT ON VIEW our_flow IS 'Our side of a flow file: one row a redemption or refund, on the day that pays it.';

CREATE VIEW flow_in_force AS
    SELECT DISTINCT ON (f.campaign_no, f.partner_no, f.day) f.*
      FROM flow_file f JOIN recon_run_flow x USING (file_no)
     ORDER BY f.campaign_no, f.partner_no, f.day, x.run_no DESC;
COMMENT ON VIEW flow_in_force IS 'Of several files that a partner sent for one day, the one that a run saw last.';

CREATE TYPE found_break AS (
    source break_source, kind break_kind, owner text, partner_no smallint, day date, key text, ordinal integer,
    ours_day date, ours_fen bigint, ours_says text, theirs_day date, theirs_fen bigint, theirs_says text
);

-- All differences of one partner's file of one day, and of our rows of that day. A key of theirs is
-- paired with our row if their day is within the tolerance; of several rows of theirs the nearest
-- day wins and the others are DUPLICATE. Each row is in one break at most.
CREATE FUNCTION partner_breaks(p_campaign_no smallint, p_partner_no smallint, p_day date, p_tolerance_days integer)
    RETURNS SETOF found_break LANGUAGE sql STABLE AS $$
    WITH ours AS MATERIALIZED (
        SELECT o.*, row_number() OVER (PARTITION BY o.kind, o.merchant_id, o.use_request_no, o.refund_request_no ORDER BY o.day) AS copy
          FROM our_flow o
         WHERE o.campaign_no = p_campaign_no AND o.partner_no = p_partner_no
           AND o.day BETWEEN p_day - p_tolerance_days AND p_day + p_tolerance_days
    ), theirs AS MATERIALIZED (
        SELECT w.*, f.day, row_number() OVER (PARTITION BY w.file_no, w.kind, w.merchant_id, w.use_request_no, w.refund_request_no
                                              ORDER BY w.line_no) AS ordinal
          FROM flow_in_force f JOIN flow_row w USING (file_no)
         WHERE f.campaign_no = p_campaign_no AND f.partner_no = p_partner_no
           AND f.day BETWEEN p_day - 2 * p_tolerance_days AND p_day + 2 * p_tolerance_days
    ), pair AS (
        SELECT coalesce(t.kind, o.kind) || ' ' || coalesce(t.merchant_id, o.merchant_id) || ' '
                 || coalesce(t.use_request_no, o.use_request_no)
                 || coalesce(' ' || nullif(coalesce(t.refund_request_no, o.refund_request_no), ''), '') AS key,
               coalesce(t.ordinal, o.copy)::integer AS ordinal,
               o.day AS ours_day, o.subsidy_fen AS ours_fen, o.bill_fen AS ours_bill, o.voucher_state AS ours_state,
               o.stock_id AS ours_stock, o.out_request_no AS ours_claim,
               t.day AS theirs_day, t.subsidy_fen AS theirs_fen, t.bill_fen AS theirs_bill, t.voucher_state AS theirs_state,
               t.stock_id AS theirs_stock, t.out_request_no AS theirs_claim,
               row_number() OVER (PARTITION BY t.kind, t.merchant_id, t.use_request_no, t.refund_request_no
                                  ORDER BY abs(o.day - t.day), t.day, t.line_no) AS turn,
               min(abs(o.day - t.day)) OVER (PARTITION BY o.kind, o.merchant_id, o.use_request_no, o.refund_request_no, o.copy) AS nearest
          FROM theirs t FULL JOIN ours o ON o.copy = 1 AND o.kind = t.kind AND o.merchant_id = t.merchant_id
           AND o.use_request_no = t.use_request_no AND o.refund_request_no = t.refund_request_no
    ), judged AS (
        SELECT p.*, CASE
                WHEN theirs_day = p_day AND turn > 1 THEN 'DUPLICATE'
                WHEN theirs_day = p_day AND ours_day IS NULL THEN 'MISSING_HERE'
                WHEN theirs_day = p_day AND (ours_fen <> theirs_fen OR ours_bill <> theirs_bill) THEN 'AMOUNT'
                WHEN theirs_day = p_day AND (ours_state, ours_stock, ours_claim) <> (theirs_state, theirs_stock, theirs_claim) THEN 'STATE'
                WHEN theirs_day = p_day AND ours_day <> p_day THEN 'LATE'
                WHEN theirs_day = p_day THEN NULL
                WHEN ours_day = p_day AND (nearest IS NULL OR (turn = 1 AND nearest > p_tolerance_days)) THEN 'MISSING_THERE'
                END::break_kind AS kind
          FROM pair p
    )
    SELECT 'PARTNER'::break_source, kind, CASE WHEN kind IN ('MISSING_HERE', 'AMOUNT', 'STATE') THEN 'CITY' ELSE 'PARTNER' END,
           p_partner_no, p_day, key, ordinal, ours_day, ours_fen,
           ours_state || ', bill ' || ours_bill || ' fen, stock ' || ours_stock || ', claim ' || ours_claim,
           CASE WHEN kind <> 'MISSING_THERE' THEN theirs_day END, CASE WHEN kind <> 'MISSING_THERE' THEN theirs_fen END,
           CASE WHEN kind <> 'MISSING_THERE' THEN
                theirs_state || ', bill ' || theirs_bill || ' fen, stock ' || theirs_stock || ', claim ' || theirs_claim END
      FROM judged WHERE kind IS NOT NULL
$$;

-- All differences between the bank's answers and the approved lines of batches up to a day.
-- Of several files that speak of one line the last one counts.
CREATE FUNCTION bank_breaks(p_campaign_no smallint, p_day date, p_today date, p_bank_days integer)
    RETURNS SETOF found_break LANGUAGE sql STABLE AS $$
    WITH ours AS MATERIALIZED (
        SELECT l.batch_no, l.batch_id, l.day, l.line_no, l.amount_fen, l.payee_account, l.state,
               (l.approved_at AT TIME ZONE 'Asia/Shanghai')::date AS approved_on,
               EXISTS (SELECT FROM settlement_export e WHERE e.batch_no = l.batch_no) AS is_exported
          FROM settlement_line_state l
         WHERE l.campaign_no = p_campaign_no AND l.day <= p_day AND l.state IN ('SETTLING', 'PAID', 'REJECTED')
    ), theirs AS MATERIALIZED (
        SELECT b.batch_no, b.batch_id, b.day, w.line_no, w.amount_fen, w.payee_account, w.outcome::text AS state, w.booked_on,
               rank() OVER (PARTITION BY b.batch_no, w.line_no ORDER BY w.bank_file_no DESC) AS age,
               row_number() OVER (PARTITION BY w.bank_file_no, w.line_no ORDER BY w.row_no) AS turn
          FROM bank_file f JOIN bank_row w USING (bank_file_no) JOIN settlement_batch b USING (batch_no)
         WHERE b.campaign_no = p_campaign_no AND b.day <= p_day
    ), pair AS (
        SELECT coalesce(t.batch_id, o.batch_id) || '/' || coalesce(t.line_no, o.line_no) AS key, coalesce(t.turn, 1)::integer AS ordinal,
               coalesce(t.day, o.day) AS day, o.approved_on, o.is_exported, o.line_no IS NOT NULL AS is_ours,
               t.line_no IS NOT NULL AS is_theirs, o.amount_fen AS ours_fen, t.amount_fen AS theirs_fen, t.booked_on,
               o.state AS ours_state, t.state AS theirs_state, right(o.payee_account, 4) AS ours_tail, right(t.payee_account, 4) AS theirs_tail,
               o.payee_account = t.payee_account AS is_same_payee
          FROM (SELECT * FROM theirs WHERE age = 1) t FULL JOIN ours o ON o.batch_no = t.batch_no AND o.line_no = t.line_no
    ), judged AS (
        SELECT p.*, CASE
                WHEN ordinal > 1 THEN 'DUPLICATE'
                WHEN NOT is_ours THEN 'MISSING_HERE'
                WHEN NOT is_theirs THEN CASE WHEN approved_on + p_bank_days < p_today THEN 'MISSING_THERE' END
                WHEN ours_fen <> theirs_fen THEN 'AMOUNT'
                WHEN ours_state <> theirs_state OR NOT is_same_payee THEN 'STATE'
                WHEN booked_on > approved_on + p_bank_days THEN 'LATE'
                END::break_kind AS kind
          FROM pair p
    )
    SELECT 'BANK'::break_source, kind, CASE WHEN kind IN ('DUPLICATE', 'LATE') OR (kind = 'MISSING_THERE' AND is_exported) THEN 'BANK' ELSE 'CITY' END,
           NULL::smallint, day, key, ordinal, approved_on, ours_fen, ours_state || ', account ..' || ours_tail,
           booked_on, theirs_fen, theirs_state || ', account ..' || theirs_tail
      FROM judged WHERE kind IS NOT NULL
$$;

-- Brings the breaks of one scope (a partner's day, or the bank up to a day) to what was found: adds what
-- is new, closes what is gone. What a person closed stays closed as long as it is found unchanged.
CREATE FUNCTION file_breaks(p_run_no integer, p_source break_source, p_partner_no smallint, p_day date, p_found found_break[],
                            OUT added integer, OUT gone integer)
    LANGUAGE sql AS $$
    WITH run AS (
        SELECT * FROM recon_run WHERE run_no = p_run_no
    ), found AS MATERIALIZED (
        SELECT * FROM unnest(p_found)
    ), standing AS MATERIALIZED (
        SELECT b.*, c.break_no IS NULL AS is_open
          FROM run JOIN recon_break b USING (campaign_no) LEFT JOIN recon_closure c ON c.break_no = b.break_no
         WHERE b.source = p_source AND coalesce(c.cause, 'PERSON') = 'PERSON'
           AND CASE p_source WHEN 'PARTNER' THEN b.partner_no = p_partner_no AND b.day = p_day ELSE b.day <= p_day END
    ), same AS MATERIALIZED (
        SELECT s.break_no, f.key, f.kind, f.ordinal, f.day
          FROM standing s JOIN found f USING (day, key, kind, ordinal)
         WHERE (s.ours_day, s.ours_fen, s.ours_says, s.theirs_day, s.theirs_fen, s.theirs_says)
               IS NOT DISTINCT FROM (f.ours_day, f.ours_fen, f.ours_says, f.theirs_day, f.theirs_fen, f.theirs_says)
    ), fresh AS (
        INSERT INTO recon_break (run_no, source, kind, owner, campaign_no, partner_no, day, key, ordinal,
                                 ours_day, ours_fen, ours_says, theirs_day, theirs_fen, theirs_says)
        SELECT p_run_no, f.source, f.kind, f.owner, run.campaign_no, f.partner_no, f.day, f.key, f.ordinal,
               f.ours_day, f.ours_fen, f.ours_says, f.theirs_day, f.theirs_fen, f.theirs_says
          FROM run CROSS JOIN found f
         WHERE NOT EXISTS (SELECT FROM same WHERE same.day = f.day AND same.key = f.key AND same.kind = f.kind AND same.ordinal = f.ordinal)
         ORDER BY f.day, f.key, f.ordinal
        RETURNING 1
    ), closed AS (
        INSERT INTO recon_closure (break_no, cause, run_no, closed_by, why, closed_at)
        SELECT s.break_no, 'GONE', p_run_no, run.ran_by, 'no longer a difference in this form, run ' || p_run_no, run.ran_at
          FROM run CROSS JOIN standing s
         WHERE s.is_open AND NOT EXISTS (SELECT FROM same WHERE same.break_no = s.break_no)
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM fresh)::integer, (SELECT count(*) FROM closed)::integer
$$;

SELECT make_append_only(t) FROM unnest(ARRAY['settlement_batch', 'settlement_decision', 'settlement_line', 'settlement_share',
    'settlement_line_held', 'settlement_export', 'bank_file', 'bank_row', 'bank_import', 'settlement_answer', 'fund_return',
    'flow_file', 'flow_row', 'recon_run', 'recon_run_flow', 'recon_run_bank', 'recon_break', 'recon_closure']::regclass[]) AS t;

REVOKE EXECUTE ON FUNCTION lock_settlement, settlement_position, propose_settlement, decide_settlement, answer_settlement,
    return_unused, partner_breaks, bank_breaks, file_breaks FROM PUBLIC;

GRANT SELECT ON settlement_batch, settlement_decision, settlement_line, settlement_share, settlement_line_held, settlement_export,
                bank_file, bank_row, bank_import, settlement_answer, fund_return, settlement_line_state, settlement_batch_state,
                flow_file, flow_row, recon_run, recon_run_flow, recon_run_bank, recon_break, recon_closure, our_flow, flow_in_force
   TO hanquan_finance, hanquan_operator, hanquan_auditor;
GRANT INSERT ON settlement_export, bank_file, bank_row, flow_file, flow_row, recon_run, recon_run_flow, recon_run_bank,
                recon_break, recon_closure TO hanquan_finance;
GRANT EXECUTE ON FUNCTION lock_settlement, settlement_position, propose_settlement, decide_settlement, answer_settlement,
    return_unused, partner_breaks, bank_breaks, file_breaks TO hanquan_finance;
GRANT SELECT ON settlement_line_state, our_flow TO hanquan_redemption;
