-- Checkout: holds, partial refunds, caps on what a person redeems; a till's number stands in the row that it made.

-- ---------------------------------------------------------------- numbers are found by short hashes

CREATE FUNCTION number_hash(number text, owner integer) RETURNS integer
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT (hashtextextended(number, owner) & 524287)::integer $$;
COMMENT ON FUNCTION number_hash IS 'Nineteen bits: several numbers share one, so that an index keeps them as lists of a few bytes each. '
    'Whoever looks compares the number itself.';

DROP INDEX voucher_request;
ALTER TABLE voucher ALTER COLUMN request_key TYPE integer USING (request_key >> 32)::integer;
CREATE INDEX voucher_request ON voucher ((request_key & 524287), bucket);
COMMENT ON COLUMN voucher.request_key IS 'First 4 bytes of a hash of partner and out_request_no; indexed by nineteen bits of them (see number_hash).';

ALTER TABLE refund DROP CONSTRAINT refund_bucket_voucher_id_attempt_fkey;
ALTER TABLE redemption DROP CONSTRAINT redemption_pkey;
ALTER TABLE redemption ADD PRIMARY KEY (voucher_id, bucket, attempt);
CREATE INDEX redemption_use ON redemption (number_hash(use_request_no, merchant_no), bucket);
CREATE INDEX redemption_order ON redemption (number_hash(order_no, merchant_no), bucket);

COMMENT ON TABLE request_number IS 'Numbers of tills whose own bucket is not that of the voucher, and numbers of refunds and cancels. '
    'A number lives in the bucket of its own hash: there, or, when the voucher lives there too, in the row that it made.';

-- ---------------------------------------------------------------- partial refunds

ALTER TABLE refund ADD refund_no smallint NOT NULL DEFAULT 1 CHECK (refund_no > 0);
ALTER TABLE refund ALTER refund_no DROP DEFAULT;
ALTER TABLE refund DROP CONSTRAINT refund_pkey;
ALTER TABLE refund ADD PRIMARY KEY (voucher_id, bucket, attempt, refund_no);
ALTER TABLE refund ADD FOREIGN KEY (voucher_id, bucket, attempt) REFERENCES redemption (voucher_id, bucket, attempt);
ALTER TABLE refund DROP CONSTRAINT refund_subsidy_fen_check, DROP CONSTRAINT refund_refund_fen_check;
ALTER TABLE refund ADD CHECK (subsidy_fen >= 0), ADD CHECK (refund_fen >= 0), ADD CHECK (subsidy_fen + refund_fen > 0),
    ADD CONSTRAINT restored_at_once CHECK (credit = 'RETURNED' OR refund_no = 1);
COMMENT ON COLUMN refund.refund_no IS '1, 2, ... of a redemption. What is given back in parts never gives the voucher back.';
COMMENT ON COLUMN refund.subsidy_fen IS 'What the city takes back of the subsidy; nothing in a step whose part of it is less than a fen.';

-- ---------------------------------------------------------------- holds: money that is promised to a till for a while

-- Attempts of a voucher are counted over holds and redemptions. A hold that is confirmed becomes the redemption
-- of the same attempt; one that runs out ends by the clock alone, and writes nothing.
CREATE TABLE hold (
    voucher_id       bigint NOT NULL,
    subsidy_fen      bigint NOT NULL CHECK (subsidy_fen > 0),
    bill_fen         bigint NOT NULL CHECK (bill_fen BETWEEN 1 AND 1000000000000),
    held_at          timestamptz NOT NULL,
    expires_at       timestamptz NOT NULL CHECK (expires_at > held_at),
    stock_no         integer NOT NULL,
    merchant_no      integer NOT NULL,
    terminal_no      integer NOT NULL,
    bucket           smallint NOT NULL,
    attempt          smallint NOT NULL CHECK (attempt > 0),
    hold_request_no  text COLLATE "C" NOT NULL,
    order_no         text COLLATE "C" NOT NULL,
    PRIMARY KEY (bucket, voucher_id, attempt)
) PARTITION BY RANGE (voucher_id);
CREATE INDEX hold_request ON hold (number_hash(hold_request_no, merchant_no), bucket);
CREATE INDEX hold_order ON hold (number_hash(order_no, merchant_no), bucket);
COMMENT ON TABLE hold IS 'Pending transfers ISSUED -> PAYABLE: they keep a voucher from other tills and count for caps, and move no balance.';

CREATE TYPE hold_outcome AS ENUM ('CONFIRMED', 'CANCELLED');
CREATE TABLE hold_end (
    voucher_id  bigint NOT NULL,
    ended_at    timestamptz NOT NULL,
    bucket      smallint NOT NULL,
    attempt     smallint NOT NULL,
    outcome     hold_outcome NOT NULL,
    request_no  text COLLATE "C" NOT NULL,
    PRIMARY KEY (bucket, voucher_id, attempt),
    FOREIGN KEY (bucket, voucher_id, attempt) REFERENCES hold (bucket, voucher_id, attempt)
) PARTITION BY RANGE (voucher_id);
COMMENT ON TABLE hold_end IS 'How a hold ended before its time: once, one way. CONFIRMED: there is a redemption of the same attempt.';

CREATE TABLE offline_use (
    voucher_id   bigint NOT NULL,
    uploaded_at  timestamptz NOT NULL,
    bucket       smallint NOT NULL,
    attempt      smallint NOT NULL,
    PRIMARY KEY (bucket, voucher_id, attempt),
    FOREIGN KEY (voucher_id, bucket, attempt) REFERENCES redemption (voucher_id, bucket, attempt)
) PARTITION BY RANGE (voucher_id);
COMMENT ON TABLE offline_use IS 'Redemptions that a till took without us and uploaded later: their redeemed_at is the till''s word.';

SELECT make_append_only('hold');
SELECT make_append_only('hold_end');
SELECT make_append_only('offline_use');

CREATE OR REPLACE FUNCTION open_round_storage(p_round_no smallint) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_table text;
    v_part  text;
BEGIN
    FOREACH v_table IN ARRAY ARRAY['voucher', 'redemption', 'refund', 'hold', 'hold_end', 'offline_use'] LOOP
        v_part := v_table || '_r' || p_round_no;
        EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%s) TO (%s)',
                       v_part, v_table, p_round_no::bigint << 38, (p_round_no::bigint + 1) << 38);
        EXECUTE format('CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION forbid_change()', v_part);
    END LOOP;
END $$;
DO $$ -- the rounds that there are
DECLARE
    v_round  record;
    v_table  text;
BEGIN
    FOR v_round IN SELECT round_no FROM round LOOP
        FOREACH v_table IN ARRAY ARRAY['hold', 'hold_end', 'offline_use'] LOOP
            EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%s) TO (%s)', v_table || '_r' || v_round.round_no, v_table,
                           v_round.round_no::bigint << 38, (v_round.round_no::bigint + 1) << 38);
            EXECUTE format('CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION forbid_change()',
                           v_table || '_r' || v_round.round_no);
        END LOOP;
    END LOOP;
END $$;

-- ---------------------------------------------------------------- caps on what a person redeems

CREATE TYPE cap_period AS ENUM ('MONTH', 'CAMPAIGN');
CREATE TABLE redeem_cap (
    campaign_no     smallint NOT NULL REFERENCES campaign,
    period          cap_period NOT NULL,
    is_per_partner  boolean NOT NULL,
    face_fen_max    bigint NOT NULL CHECK (face_fen_max BETWEEN 1 AND 1000000000000),
    PRIMARY KEY (campaign_no, period, is_per_partner)
);
COMMENT ON TABLE redeem_cap IS 'How much face one person may redeem in a calendar month (Asia/Shanghai) or in all, at one partner''s vouchers or at everybody''s.';
SELECT make_append_only('redeem_cap');

-- Only campaigns with caps write here: some eighty bytes a use.
CREATE TABLE person_use (
    voucher_id   bigint NOT NULL,
    person_hash  integer NOT NULL,
    used_on      date NOT NULL,
    bucket       smallint NOT NULL,
    attempt      smallint NOT NULL
);
CREATE INDEX person_use_person ON person_use (person_hash, bucket);
COMMENT ON TABLE person_use IS 'Holds and redemptions by person, where caps ask for it: found by a hash, compared by the voucher''s person.';

CREATE FUNCTION person_hash(person uuid) RETURNS integer
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT uuid_hash(person) $$;

-- A use counts for a cap while the city pays for it: a live hold, or a redemption not taken back whole.
CREATE FUNCTION is_use_live(p_bucket smallint, p_at timestamptz, p_voucher_id bigint, p_attempt smallint) RETURNS boolean
    LANGUAGE sql STABLE AS $$
    SELECT coalesce(
        (SELECT r.subsidy_fen > coalesce((SELECT sum(f.subsidy_fen) FROM refund f
                WHERE f.bucket = p_bucket AND f.voucher_id = p_voucher_id AND f.attempt = p_attempt), 0)
           FROM redemption r WHERE r.bucket = p_bucket AND r.voucher_id = p_voucher_id AND r.attempt = p_attempt),
        (SELECT h.expires_at > p_at AND NOT EXISTS (SELECT FROM hold_end e
                WHERE e.bucket = p_bucket AND e.voucher_id = p_voucher_id AND e.attempt = p_attempt)
           FROM hold h WHERE h.bucket = p_bucket AND h.voucher_id = p_voucher_id AND h.attempt = p_attempt),
        false) $$;

-- ---------------------------------------------------------------- booking

DROP FUNCTION redeem_batch;
DROP FUNCTION refund_batch;
DROP TYPE redeem_outcome;
DROP TYPE refund_outcome;
CREATE TYPE till_outcome AS ENUM (
    'DONE', 'REPLAYED',
    'MISMATCH',       -- the number stands for another request
    'ORDER_TAKEN',    -- the payment has another voucher
    'CONFIRMING',     -- not in the books yet
    'USED', 'RETURNED', 'EXPIRED',
    'HELD',           -- another request holds it
    'CAP_MONTH', 'CAP_CAMPAIGN',
    'NOT_FOUND',
    'RUN_OUT', 'CONFIRMED', 'CANCELLED',  -- how the hold ended
    'CHANGED',        -- another refund came between: look again
    'OVER_LIMIT'
);

-- The cap that one more voucher of a stock would break for a person; null when none.
CREATE FUNCTION cap_broken(p_bucket smallint, p_at timestamptz, p_day date, p_person uuid, p_stock_no integer) RETURNS till_outcome
    LANGUAGE sql STABLE AS $$
    SELECT CASE c.period WHEN 'MONTH' THEN 'CAP_MONTH' ELSE 'CAP_CAMPAIGN' END::till_outcome
      FROM stock s JOIN round d USING (round_no) JOIN redeem_cap c USING (campaign_no)
     WHERE s.stock_no = p_stock_no
       AND s.face_value_fen + coalesce((
            SELECT sum(k.face_value_fen) FROM person_use u
              JOIN voucher v ON v.bucket = p_bucket AND v.voucher_id = u.voucher_id AND v.person = p_person
              JOIN stock k ON k.stock_no = v.stock_no JOIN round e ON e.round_no = k.round_no
             WHERE u.person_hash = person_hash(p_person) AND u.bucket = p_bucket AND e.campaign_no = c.campaign_no
               AND (k.partner_no = s.partner_no OR NOT c.is_per_partner)
               AND (c.period = 'CAMPAIGN' OR date_trunc('month', u.used_on) = date_trunc('month', p_day))
               AND is_use_live(p_bucket, p_at, u.voucher_id, u.attempt)), 0) > c.face_fen_max
     ORDER BY c.period, c.is_per_partner DESC LIMIT 1 $$;

-- Whether a number of a merchant made a row in this bucket: of a voucher other than the one named.
CREATE FUNCTION is_use_taken(p_bucket smallint, p_oldest bigint, p_merchant_no integer, p_number text, p_voucher_id bigint) RETURNS boolean
    LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM redemption r
         WHERE number_hash(r.use_request_no, r.merchant_no) = number_hash(p_number, p_merchant_no) AND r.bucket = p_bucket
           AND r.voucher_id >= p_oldest AND r.merchant_no = p_merchant_no AND r.use_request_no = p_number AND r.voucher_id <> p_voucher_id) $$;

CREATE FUNCTION is_hold_taken(p_bucket smallint, p_oldest bigint, p_merchant_no integer, p_number text, p_voucher_id bigint) RETURNS boolean
    LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM hold h
         WHERE number_hash(h.hold_request_no, h.merchant_no) = number_hash(p_number, p_merchant_no) AND h.bucket = p_bucket
           AND h.voucher_id >= p_oldest AND h.merchant_no = p_merchant_no AND h.hold_request_no = p_number AND h.voucher_id <> p_voucher_id) $$;

CREATE FUNCTION is_order_taken(p_bucket smallint, p_oldest bigint, p_merchant_no integer, p_number text, p_voucher_id bigint) RETURNS boolean
    LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM redemption r
         WHERE number_hash(r.order_no, r.merchant_no) = number_hash(p_number, p_merchant_no) AND r.bucket = p_bucket
           AND r.voucher_id >= p_oldest AND r.merchant_no = p_merchant_no AND r.order_no = p_number AND r.voucher_id <> p_voucher_id)
        OR EXISTS (SELECT FROM hold h
         WHERE number_hash(h.order_no, h.merchant_no) = number_hash(p_number, p_merchant_no) AND h.bucket = p_bucket
           AND h.voucher_id >= p_oldest AND h.merchant_no = p_merchant_no AND h.order_no = p_number AND h.voucher_id <> p_voucher_id) $$;

-- Which numbers of one bucket stand for something else than what they were sent with now: an order for another voucher, any
-- other number for another body. Looks, in the bucket of the numbers' own hashes, at rows and registrations alike.
CREATE FUNCTION taken_numbers(p_bucket smallint, p_oldest bigint, p_scope text[], p_request_key uuid[], p_body_hash bigint[],
        p_voucher_id bigint[], p_merchant_no integer[], p_number text[])
    RETURNS TABLE (item bigint)
    LANGUAGE plpgsql STABLE SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    RETURN QUERY
    SELECT a.item FROM unnest(p_scope, p_request_key, p_body_hash, p_voucher_id, p_merchant_no, p_number) WITH ORDINALITY
            AS a(scope, request_key, body_hash, voucher_id, merchant_no, number, item)
      LEFT JOIN request_number n ON n.bucket = p_bucket AND n.request_key = a.request_key
     WHERE n.voucher_id <> a.voucher_id OR (n.body_hash <> a.body_hash AND a.scope <> 'ORDER')
        OR CASE a.scope WHEN 'USE' THEN is_use_taken(p_bucket, p_oldest, a.merchant_no, a.number, a.voucher_id)
                        WHEN 'HOLD' THEN is_hold_taken(p_bucket, p_oldest, a.merchant_no, a.number, a.voucher_id)
                        WHEN 'ORDER' THEN is_order_taken(p_bucket, p_oldest, a.merchant_no, a.number, a.voucher_id)
                        ELSE false END;
END $$;

-- Registers numbers in the bucket of their own hashes, those that are free; answers the others.
CREATE FUNCTION register_numbers(p_bucket smallint, p_oldest bigint, p_scope text[], p_request_key uuid[], p_body_hash bigint[],
        p_voucher_id bigint[], p_merchant_no integer[], p_number text[])
    RETURNS TABLE (item bigint)
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    v_taken bigint[];
BEGIN
    PERFORM lock_bucket(p_bucket);
    v_taken := ARRAY(SELECT t.item FROM taken_numbers(p_bucket, p_oldest, p_scope, p_request_key, p_body_hash, p_voucher_id, p_merchant_no, p_number) t);
    INSERT INTO request_number (bucket, request_key, body_hash, voucher_id)
    SELECT p_bucket, a.request_key, a.body_hash, a.voucher_id
      FROM unnest(p_request_key, p_body_hash, p_voucher_id) WITH ORDINALITY AS a(request_key, body_hash, voucher_id, item)
     WHERE a.item <> ALL (v_taken) ORDER BY a.request_key ON CONFLICT DO NOTHING;
    RETURN QUERY SELECT unnest(v_taken);
END $$;

-- The vouchers that numbers of one bucket stand for, wherever those live; of rows with one number, the newest.
CREATE FUNCTION find_numbers(p_bucket smallint, p_scope text[], p_request_key uuid[], p_merchant_no integer[], p_number text[])
    RETURNS TABLE (item bigint, voucher_id bigint)
    LANGUAGE plpgsql STABLE SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    RETURN QUERY
    SELECT a.item, coalesce(n.voucher_id, CASE a.scope
        WHEN 'USE' THEN (SELECT max(r.voucher_id) FROM redemption r
             WHERE number_hash(r.use_request_no, r.merchant_no) = number_hash(a.number, a.merchant_no) AND r.bucket = p_bucket
               AND r.merchant_no = a.merchant_no AND r.use_request_no = a.number)
        WHEN 'HOLD' THEN (SELECT max(h.voucher_id) FROM hold h
             WHERE number_hash(h.hold_request_no, h.merchant_no) = number_hash(a.number, a.merchant_no) AND h.bucket = p_bucket
               AND h.merchant_no = a.merchant_no AND h.hold_request_no = a.number)
        WHEN 'ORDER' THEN greatest((SELECT max(r.voucher_id) FROM redemption r
             WHERE number_hash(r.order_no, r.merchant_no) = number_hash(a.number, a.merchant_no) AND r.bucket = p_bucket
               AND r.merchant_no = a.merchant_no AND r.order_no = a.number),
            (SELECT max(h.voucher_id) FROM hold h
             WHERE number_hash(h.order_no, h.merchant_no) = number_hash(a.number, a.merchant_no) AND h.bucket = p_bucket
               AND h.merchant_no = a.merchant_no AND h.order_no = a.number)) END)
      FROM unnest(p_scope, p_request_key, p_merchant_no, p_number) WITH ORDINALITY AS a(scope, request_key, merchant_no, number, item)
      LEFT JOIN request_number n ON n.bucket = p_bucket AND n.request_key = a.request_key;
END $$;

-- Redeems vouchers of one bucket, or holds them (p_expires_at not null): each item judged on its own, all committed
-- together. No two items of a call have a voucher, a number, a payment or a person in common.
-- A connection keeps the plan it made when the tables were still empty; SET makes that plan one by keys.
-- The caller has checked the offer's rules (they never change); here only what another request may have changed is
-- decided. p_is_use_here, p_is_order_here: this bucket is the number's own, so it is looked at here; otherwise it is
-- registered in its own. p_taken_at, p_taken_on: moment and business day of the use; p_is_offline: the till's word, not ours.
-- Array position = item number in the answer, from 1.
CREATE FUNCTION redeem_batch(p_bucket smallint, p_at timestamptz, p_oldest bigint,
        p_voucher_id bigint[], p_stock_no integer[], p_merchant_no integer[], p_terminal_no integer[],
        p_bill_fen bigint[], p_subsidy_fen bigint[], p_request_no text[], p_order_no text[], p_expires_at timestamptz[],
        p_request_key uuid[], p_order_key uuid[], p_body_hash bigint[], p_is_use_here boolean[], p_is_order_here boolean[],
        p_taken_at timestamptz[], p_taken_on date[], p_is_offline boolean[])
    RETURNS TABLE (item bigint, outcome till_outcome, booked_at timestamptz, expires_at timestamptz)
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    v_open     date; -- the first day that is not closed
    v_holds    boolean; -- asked once: while nobody holds anything, nobody looks
    v_numbers  boolean;
    v_caps     boolean;
BEGIN
    PERFORM lock_bucket(p_bucket);
    v_open := first_open_day(p_bucket, '-infinity');
    v_holds := EXISTS (SELECT FROM hold WHERE bucket = p_bucket);
    v_numbers := EXISTS (SELECT FROM request_number WHERE bucket = p_bucket);
    v_caps := EXISTS (SELECT FROM redeem_cap);
    RETURN QUERY
    WITH asked AS MATERIALIZED (
        SELECT * FROM unnest(p_voucher_id, p_stock_no, p_merchant_no, p_terminal_no, p_bill_fen, p_subsidy_fen, p_request_no, p_order_no,
                             p_expires_at, p_request_key, p_order_key, p_body_hash, p_is_use_here, p_is_order_here,
                             p_taken_at, p_taken_on, p_is_offline) WITH ORDINALITY
            AS a(voucher_id, stock_no, merchant_no, terminal_no, bill_fen, subsidy_fen, request_no, order_no,
                 expires_at, request_key, order_key, body_hash, is_use_here, is_order_here, taken_at, taken_on, is_offline, item)
    ), state AS MATERIALIZED (
        SELECT a.*, v.person, last.attempt AS last_attempt, last.credit AS last_credit, last.is_mine, last.is_same,
               last.redeemed_at AS mine_at, held.attempt AS held_attempt, held.is_live, held.is_mine AS is_mine_held,
               held.is_same AS is_same_held, held.held_at, held.held_until,
               a.is_use_here AND a.expires_at IS NULL AND EXISTS (SELECT FROM redemption r
                    WHERE number_hash(r.use_request_no, r.merchant_no) = number_hash(a.request_no, a.merchant_no) AND r.bucket = p_bucket
                      AND r.voucher_id >= p_oldest AND r.merchant_no = a.merchant_no AND r.use_request_no = a.request_no
                      AND r.voucher_id <> a.voucher_id)
                OR a.is_use_here AND a.expires_at IS NOT NULL AND is_hold_taken(p_bucket, p_oldest, a.merchant_no, a.request_no, a.voucher_id)
                OR v_numbers AND a.is_use_here AND EXISTS (SELECT FROM request_number n
                    WHERE n.bucket = p_bucket AND n.request_key = a.request_key AND (n.voucher_id, n.body_hash) <> (a.voucher_id, a.body_hash))
                AS is_number_taken,
               a.is_order_here AND EXISTS (SELECT FROM redemption r
                    WHERE number_hash(r.order_no, r.merchant_no) = number_hash(a.order_no, a.merchant_no) AND r.bucket = p_bucket
                      AND r.voucher_id >= p_oldest AND r.merchant_no = a.merchant_no AND r.order_no = a.order_no
                      AND r.voucher_id <> a.voucher_id)
                OR v_holds AND a.is_order_here AND is_order_taken(p_bucket, p_oldest, a.merchant_no, a.order_no, a.voucher_id)
                OR v_numbers AND a.is_order_here AND EXISTS (SELECT FROM request_number n
                    WHERE n.bucket = p_bucket AND n.request_key = a.order_key AND n.voucher_id <> a.voucher_id)
                AS is_order_taken
          FROM asked a
          LEFT JOIN voucher v ON v.bucket = p_bucket AND v.voucher_id = a.voucher_id
          LEFT JOIN LATERAL (SELECT r.attempt, r.redeemed_at, r.merchant_no = a.merchant_no AND r.use_request_no = a.request_no AS is_mine,
                    (r.order_no, r.bill_fen) = (a.order_no, a.bill_fen) AS is_same,
                    (SELECT f.credit FROM refund f WHERE f.bucket = p_bucket AND f.voucher_id = r.voucher_id AND f.attempt = r.attempt
                      LIMIT 1) AS credit
                FROM redemption r WHERE r.bucket = p_bucket AND r.voucher_id = a.voucher_id
                ORDER BY r.merchant_no = a.merchant_no AND r.use_request_no = a.request_no AND a.expires_at IS NULL DESC, r.attempt DESC LIMIT 1) last ON true
          LEFT JOIN LATERAL (SELECT h.attempt, h.held_at, h.expires_at AS held_until,
                    h.merchant_no = a.merchant_no AND h.hold_request_no = a.request_no AS is_mine,
                    (h.order_no, h.bill_fen) = (a.order_no, a.bill_fen) AS is_same,
                    h.expires_at > p_at AND NOT EXISTS (SELECT FROM hold_end e
                        WHERE e.bucket = p_bucket AND e.voucher_id = h.voucher_id AND e.attempt = h.attempt) AS is_live
                FROM hold h WHERE v_holds AND h.bucket = p_bucket AND h.voucher_id = a.voucher_id
                ORDER BY h.merchant_no = a.merchant_no AND h.hold_request_no = a.request_no AND a.expires_at IS NOT NULL DESC,
                         h.attempt DESC LIMIT 1) held ON true
    ), judged AS MATERIALIZED (
        SELECT s.*, (CASE
                WHEN s.is_number_taken THEN 'MISMATCH'
                WHEN s.expires_at IS NULL AND s.is_mine THEN CASE WHEN s.is_same THEN 'REPLAYED' ELSE 'MISMATCH' END
                WHEN s.expires_at IS NOT NULL AND s.is_mine_held THEN CASE WHEN s.is_same_held THEN 'REPLAYED' ELSE 'MISMATCH' END
                WHEN s.is_order_taken THEN 'ORDER_TAKEN'
                WHEN s.person IS NULL THEN 'CONFIRMING'
                WHEN s.last_attempt IS NOT NULL AND s.last_credit IS NULL THEN 'USED'
                WHEN s.last_credit = 'RETURNED' THEN 'RETURNED'
                WHEN s.is_live AND s.held_attempt > coalesce(s.last_attempt, 0) THEN 'HELD'
                WHEN EXISTS (SELECT FROM transfer t WHERE t.reference = 'stock ' || s.stock_no AND t.kind = 'EXPIRE' AND t.bucket = p_bucket) THEN 'EXPIRED'
                ELSE coalesce(CASE WHEN v_caps THEN cap_broken(p_bucket, p_at, s.taken_on, s.person, s.stock_no) END::text, 'DONE') END)::till_outcome AS outcome,
               greatest(s.last_attempt, s.held_attempt, 0::smallint) + 1 AS attempt
          FROM state s
    ), redeemed AS (
        INSERT INTO redemption (voucher_id, subsidy_fen, bill_fen, redeemed_at, stock_no, merchant_no, terminal_no,
                                booked_on, bucket, attempt, use_request_no, order_no)
        SELECT j.voucher_id, j.subsidy_fen, j.bill_fen, j.taken_at, j.stock_no, j.merchant_no, j.terminal_no,
               greatest(j.taken_on, v_open), p_bucket, j.attempt, j.request_no, j.order_no
          FROM judged j WHERE j.outcome = 'DONE' AND j.expires_at IS NULL ORDER BY j.voucher_id
    ), uploaded AS (
        INSERT INTO offline_use (voucher_id, uploaded_at, bucket, attempt)
        SELECT j.voucher_id, p_at, p_bucket, j.attempt FROM judged j WHERE j.outcome = 'DONE' AND j.is_offline
    ), held AS (
        INSERT INTO hold (voucher_id, subsidy_fen, bill_fen, held_at, expires_at, stock_no, merchant_no, terminal_no,
                          bucket, attempt, hold_request_no, order_no)
        SELECT j.voucher_id, j.subsidy_fen, j.bill_fen, j.taken_at, j.expires_at, j.stock_no, j.merchant_no, j.terminal_no,
               p_bucket, j.attempt, j.request_no, j.order_no
          FROM judged j WHERE j.outcome = 'DONE' AND j.expires_at IS NOT NULL
    ), counted AS (
        INSERT INTO person_use (voucher_id, person_hash, used_on, bucket, attempt)
        SELECT j.voucher_id, person_hash(j.person), j.taken_on, p_bucket, j.attempt
          FROM judged j JOIN stock k ON k.stock_no = j.stock_no JOIN round d ON d.round_no = k.round_no
         WHERE v_caps AND j.outcome = 'DONE' AND EXISTS (SELECT FROM redeem_cap c WHERE c.campaign_no = d.campaign_no)
    ), told AS (
        INSERT INTO callback_event (bucket, voucher_id, attempt, kind, partner_no, happened_at, next_at)
        SELECT p_bucket, j.voucher_id, j.attempt, 'USED', c.partner_no, p_at, p_at
          FROM judged j JOIN stock k ON k.stock_no = j.stock_no JOIN callback_subscription c ON c.partner_no = k.partner_no
         WHERE j.outcome = 'DONE' AND j.expires_at IS NULL AND c.is_active AND 'USED' = ANY (c.kinds)
           AND EXISTS (SELECT FROM callback_subscription WHERE is_active) -- asked once: no subscriber, no look
    )
    SELECT j.item, j.outcome, CASE WHEN j.outcome <> 'REPLAYED' THEN j.taken_at WHEN j.expires_at IS NULL THEN j.mine_at ELSE j.held_at END,
           CASE WHEN j.outcome = 'REPLAYED' AND j.expires_at IS NOT NULL THEN j.held_until ELSE j.expires_at END
      FROM judged j;
END $$;

-- Ends holds of one bucket: confirms them (p_use_request_no not null: the redemption's number), or cancels them. No two items
-- of a call have a hold or a number in common. Answers when the hold ended, which for one that ran out is its limit.
CREATE FUNCTION end_holds(p_bucket smallint, p_at timestamptz, p_day date, p_oldest bigint,
        p_voucher_id bigint[], p_merchant_no integer[], p_hold_request_no text[], p_use_request_no text[], p_cancel_request_no text[],
        p_request_key uuid[], p_body_hash bigint[], p_is_use_here boolean[])
    RETURNS TABLE (item bigint, outcome till_outcome, ended_at timestamptz)
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    v_day date;
BEGIN
    PERFORM lock_bucket(p_bucket);
    v_day := first_open_day(p_bucket, p_day);
    RETURN QUERY
    WITH asked AS MATERIALIZED (
        SELECT * FROM unnest(p_voucher_id, p_merchant_no, p_hold_request_no, p_use_request_no, p_cancel_request_no,
                             p_request_key, p_body_hash, p_is_use_here) WITH ORDINALITY
            AS a(voucher_id, merchant_no, hold_request_no, use_request_no, cancel_request_no, request_key, body_hash, is_use_here, item)
    ), state AS MATERIALIZED (
        SELECT a.item, a.use_request_no, a.cancel_request_no, h.*, e.outcome AS ended, e.request_no AS ended_by, e.ended_at AS ended_then,
               EXISTS (SELECT FROM hold n WHERE n.bucket = p_bucket AND n.voucher_id = h.voucher_id AND n.attempt > h.attempt)
            OR EXISTS (SELECT FROM redemption n WHERE n.bucket = p_bucket AND n.voucher_id = h.voucher_id AND n.attempt > h.attempt) AS is_past,
               a.use_request_no IS NOT NULL AND (
                    a.is_use_here AND is_use_taken(p_bucket, p_oldest, a.merchant_no, a.use_request_no, a.voucher_id)
                 OR a.is_use_here AND EXISTS (SELECT FROM request_number n WHERE n.bucket = p_bucket AND n.request_key = a.request_key
                        AND (n.voucher_id, n.body_hash) <> (a.voucher_id, a.body_hash))
                 OR EXISTS (SELECT FROM redemption r WHERE r.bucket = p_bucket AND r.voucher_id = a.voucher_id
                        AND r.merchant_no = a.merchant_no AND r.use_request_no = a.use_request_no AND r.attempt IS DISTINCT FROM h.attempt)) AS is_number_taken
          FROM asked a
          LEFT JOIN LATERAL (SELECT i.* FROM hold i WHERE i.bucket = p_bucket AND i.voucher_id = a.voucher_id
                AND i.merchant_no = a.merchant_no AND i.hold_request_no = a.hold_request_no) h ON true
          LEFT JOIN hold_end e ON e.bucket = p_bucket AND e.voucher_id = h.voucher_id AND e.attempt = h.attempt
    ), judged AS MATERIALIZED (
        SELECT s.*, (CASE
                WHEN s.voucher_id IS NULL THEN 'NOT_FOUND'
                WHEN s.is_number_taken THEN 'MISMATCH'
                WHEN s.ended = 'CONFIRMED' AND s.ended_by = s.use_request_no THEN 'REPLAYED'
                WHEN s.ended = 'CANCELLED' AND s.ended_then >= s.expires_at THEN 'RUN_OUT'
                WHEN s.ended = 'CANCELLED' AND s.ended_by = s.cancel_request_no THEN 'REPLAYED'
                WHEN s.ended IS NOT NULL THEN s.ended::text
                WHEN s.is_past OR s.expires_at <= p_at OR is_stock_expired(p_bucket, s.stock_no) THEN 'RUN_OUT'
                ELSE 'DONE' END)::till_outcome AS outcome,
               greatest(p_at, s.held_at) AS now_at -- this worker's clock may lag behind that of the one who held
          FROM state s
    ), redeemed AS (
        INSERT INTO redemption (voucher_id, subsidy_fen, bill_fen, redeemed_at, stock_no, merchant_no, terminal_no,
                                booked_on, bucket, attempt, use_request_no, order_no)
        SELECT j.voucher_id, j.subsidy_fen, j.bill_fen, j.now_at, j.stock_no, j.merchant_no, j.terminal_no,
               greatest(v_day, (j.now_at AT TIME ZONE 'Asia/Shanghai')::date), p_bucket, j.attempt, j.use_request_no, j.order_no
          FROM judged j WHERE j.outcome = 'DONE' AND j.use_request_no IS NOT NULL
    ), resolved AS (
        INSERT INTO hold_end (voucher_id, ended_at, bucket, attempt, outcome, request_no)
        SELECT j.voucher_id, CASE j.outcome WHEN 'DONE' THEN j.now_at ELSE greatest(p_at, j.expires_at) END, p_bucket, j.attempt,
               CASE WHEN j.use_request_no IS NULL THEN 'CANCELLED' ELSE 'CONFIRMED' END::hold_outcome,
               coalesce(j.use_request_no, j.cancel_request_no)
          FROM judged j -- a cancel of what ran out is written, too: no clock that lags may confirm it afterwards
         WHERE j.outcome = 'DONE' OR (j.outcome = 'RUN_OUT' AND j.ended IS NULL AND j.cancel_request_no IS NOT NULL)
    ), told AS (
        INSERT INTO callback_event (bucket, voucher_id, attempt, kind, partner_no, happened_at, next_at)
        SELECT p_bucket, j.voucher_id, j.attempt, 'USED', c.partner_no, p_at, p_at
          FROM judged j JOIN stock k ON k.stock_no = j.stock_no JOIN callback_subscription c ON c.partner_no = k.partner_no
         WHERE j.outcome = 'DONE' AND j.use_request_no IS NOT NULL AND c.is_active AND 'USED' = ANY (c.kinds)
    )
    SELECT j.item, j.outcome, CASE j.outcome WHEN 'DONE' THEN j.now_at WHEN 'RUN_OUT' THEN j.expires_at ELSE j.ended_then END FROM judged j;
END $$;

-- Refunds redemptions of one bucket, whole or in part. Each names the redemption by the till's own number, and how many
-- refunds and how much of the subsidy taken back the caller counted on (p_refunds, p_back_fen): CHANGED when there are more.
-- No two items of a call have a redemption or a number in common.
CREATE FUNCTION refund_batch(p_bucket smallint, p_at timestamptz, p_day date,
        p_voucher_id bigint[], p_merchant_no integer[], p_use_request_no text[], p_refund_request_no text[], p_refund_fen bigint[],
        p_subsidy_fen bigint[], p_is_restored boolean[], p_refunds smallint[])
    RETURNS TABLE (item bigint, outcome till_outcome, credit account_kind, subsidy_fen bigint, refunded_at timestamptz)
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    v_day        date;
    v_first_open date;
BEGIN
    PERFORM lock_bucket(p_bucket);
    v_day := first_open_day(p_bucket, p_day);
    v_first_open := coalesce((SELECT max(c.day) + 1 FROM day_close c WHERE c.bucket = p_bucket), '-infinity');
    RETURN QUERY
    WITH asked AS MATERIALIZED (
        SELECT * FROM unnest(p_voucher_id, p_merchant_no, p_use_request_no, p_refund_request_no, p_refund_fen, p_subsidy_fen, p_is_restored, p_refunds)
            WITH ORDINALITY AS a(voucher_id, merchant_no, use_request_no, refund_request_no, refund_fen, subsidy_fen, is_restored, refunds, item)
    ), state AS MATERIALIZED (
        SELECT a.item, a.refund_request_no, a.refund_fen, a.subsidy_fen, a.is_restored, a.refunds, r.*, f.credit AS mine_credit,
               f.subsidy_fen AS mine_fen, f.refunded_at AS mine_at,
               earlier.refunds AS refunds_now, earlier.back_fen,
               sum(a.subsidy_fen) FILTER (WHERE r.booked_on < v_first_open AND f.attempt IS NULL) OVER (PARTITION BY r.merchant_no ORDER BY a.item) AS asked_fen
          FROM asked a
          LEFT JOIN LATERAL (SELECT u.voucher_id, u.attempt, u.merchant_no, u.stock_no, u.booked_on, u.subsidy_fen AS whole_fen FROM redemption u
                WHERE u.bucket = p_bucket AND u.voucher_id = a.voucher_id
                  AND u.merchant_no = a.merchant_no AND u.use_request_no = a.use_request_no) r ON true
          LEFT JOIN LATERAL (SELECT count(*) AS refunds, coalesce(sum(n.subsidy_fen), 0) AS back_fen FROM refund n
                WHERE n.bucket = p_bucket AND n.voucher_id = r.voucher_id AND n.attempt = r.attempt) earlier ON true
          LEFT JOIN refund f ON f.bucket = p_bucket AND f.voucher_id = r.voucher_id AND f.attempt = r.attempt AND f.refund_request_no = a.refund_request_no
    ), judged AS MATERIALIZED (
        SELECT s.*, (CASE
                WHEN s.voucher_id IS NULL THEN 'NOT_FOUND'
                WHEN s.mine_at IS NOT NULL THEN 'REPLAYED'
                WHEN s.refunds_now <> s.refunds THEN 'CHANGED'
                WHEN s.back_fen + s.subsidy_fen > s.whole_fen THEN 'RETURNED' -- the caller knows; here for good measure
                WHEN s.booked_on < v_first_open AND refund_room_fen(p_bucket, s.merchant_no, v_first_open) < s.asked_fen THEN 'OVER_LIMIT'
                ELSE 'DONE' END)::till_outcome AS outcome,
               coalesce(s.mine_credit, CASE WHEN s.is_restored AND NOT is_stock_expired(p_bucket, s.stock_no) THEN 'ISSUED' ELSE 'RETURNED' END::account_kind) AS goes_to
          FROM state s
    ), booked AS (
        INSERT INTO refund (voucher_id, subsidy_fen, refund_fen, refunded_at, stock_no, merchant_no, booked_on,
                            bucket, attempt, credit, refund_request_no, refund_no)
        SELECT j.voucher_id, j.subsidy_fen, j.refund_fen, p_at, j.stock_no, j.merchant_no, v_day,
               p_bucket, j.attempt, j.goes_to, j.refund_request_no, j.refunds + 1
          FROM judged j WHERE j.outcome = 'DONE' ORDER BY j.voucher_id
    ), told AS (
        INSERT INTO callback_event (bucket, voucher_id, attempt, part, kind, partner_no, happened_at, next_at)
        SELECT p_bucket, j.voucher_id, j.attempt, j.refunds, 'REFUNDED', c.partner_no, p_at, p_at
          FROM judged j JOIN stock k ON k.stock_no = j.stock_no JOIN callback_subscription c ON c.partner_no = k.partner_no
         WHERE j.outcome = 'DONE' AND c.is_active AND 'REFUNDED' = ANY (c.kinds)
           AND EXISTS (SELECT FROM callback_subscription WHERE is_active)
    )
    SELECT j.item, j.outcome, j.goes_to, coalesce(j.mine_fen, j.subsidy_fen), coalesce(j.mine_at, p_at) FROM judged j;
END $$;

-- How much more of the sales of closed days may be refunded at a merchant before it owes the city more than
-- agreed. What it is owed for closed days is no room, nor does what one campaign owes it cover what it owes another: a
-- batch may be paying that out right now. Refunds of sales of an open day do not count: each takes back its own sale
-- and no more.
CREATE OR REPLACE FUNCTION refund_room_fen(p_bucket smallint, p_merchant_no integer, p_first_open date) RETURNS bigint
    LANGUAGE sql STABLE AS $$
    SELECT ((SELECT m.refund_debt_fen_max FROM merchant m WHERE m.merchant_no = p_merchant_no)
         + coalesce((SELECT sum(least(0, a.credits_fen - a.debits_fen)) FROM account a
                      WHERE a.bucket = p_bucket AND a.merchant_no = p_merchant_no AND a.kind = 'PAYABLE'), 0)
         - coalesce((SELECT sum(f.subsidy_fen) FROM refund f
                       JOIN redemption r ON r.bucket = f.bucket AND r.voucher_id = f.voucher_id AND r.attempt = f.attempt
                      WHERE f.bucket = p_bucket AND f.merchant_no = p_merchant_no AND f.booked_on >= p_first_open
                        AND r.booked_on < p_first_open), 0))::bigint
$$;

ALTER TABLE callback_event ADD part smallint NOT NULL DEFAULT 0;
ALTER TABLE callback_event DROP CONSTRAINT callback_event_pkey;
ALTER TABLE callback_event ADD PRIMARY KEY (bucket, voucher_id, attempt, kind, part);
COMMENT ON COLUMN callback_event.part IS 'Which further refund of the use it is about: 0 for the first, and for everything else.';

-- ---------------------------------------------------------------- who may do what

GRANT SELECT ON redeem_cap TO hanquan_auditor, hanquan_redemption, hanquan_issuer, hanquan_operator, hanquan_finance;
GRANT INSERT ON redeem_cap TO hanquan_operator;
GRANT SELECT ON hold, hold_end, offline_use, person_use TO hanquan_auditor, hanquan_finance;
GRANT SELECT ON hold, hold_end TO hanquan_issuer;
GRANT SELECT, INSERT ON hold, hold_end, offline_use, person_use TO hanquan_redemption;
REVOKE EXECUTE ON FUNCTION number_hash, person_hash, is_use_live, cap_broken, is_use_taken, is_hold_taken, is_order_taken, taken_numbers,
    register_numbers, find_numbers, redeem_batch, end_holds, refund_batch FROM PUBLIC;
GRANT EXECUTE ON FUNCTION number_hash, person_hash, is_use_live, cap_broken, is_use_taken, is_hold_taken, is_order_taken, taken_numbers,
    register_numbers, find_numbers, redeem_batch, end_holds, refund_batch TO hanquan_redemption;
GRANT EXECUTE ON FUNCTION number_hash TO hanquan_issuer, hanquan_finance, hanquan_operator, hanquan_auditor;
