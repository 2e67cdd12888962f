-- Callbacks to partners: who is told what, the outbox, and who writes it: redeem_batch, refund_batch and
-- expire_stock as they were, each with one statement more.

-- What a partner wants to be told, where, and how often it is tried. Who does not subscribe costs no row anywhere.
CREATE TYPE callback_kind AS ENUM ('CLAIMED', 'USED', 'REFUNDED', 'EXPIRED');

CREATE TABLE callback_subscription (
    partner_no      smallint PRIMARY KEY REFERENCES partner,
    url             text NOT NULL CHECK (url ~ '^https?://[^[:space:]]+$' AND length(url) <= 500),
    kinds           callback_kind[] NOT NULL CHECK (cardinality(kinds) > 0),
    is_active       boolean NOT NULL DEFAULT true,
    may_be_private  boolean NOT NULL DEFAULT false,
    retry_after_s   integer[] NOT NULL CHECK (cardinality(retry_after_s) BETWEEN 1 AND 100 AND 0 < ALL (retry_after_s)),
    changed_at      timestamptz NOT NULL,
    CONSTRAINT encrypted_on_the_way CHECK (may_be_private OR url LIKE 'https://%')
);
COMMENT ON COLUMN callback_subscription.is_active IS 'When false nothing new is written down for the partner; what waits stays and is not sent.';
COMMENT ON COLUMN callback_subscription.may_be_private IS 'The address may be one that is not public, and plain http: a leased line, a test.';
COMMENT ON COLUMN callback_subscription.retry_after_s IS 'Seconds from each failed attempt to the next; after one more failure than there are entries it is a dead letter.';

CREATE TABLE callback_key (
    serial_no     text PRIMARY KEY CHECK (serial_no ~ '^[0-9A-F]{16,40}$'),
    partner_no    smallint NOT NULL REFERENCES partner,
    key_material  bytea NOT NULL,
    not_before    timestamptz NOT NULL
);
COMMENT ON TABLE callback_key IS 'The newest key whose time has come seals a partner''s messages; older ones stay for the record.';
COMMENT ON COLUMN callback_key.key_material IS '64 bytes, sealed with the master key: 32 to sign with (HMAC-SHA256), then 32 to encrypt with (AES-256-GCM).';

-- The outbox. A row is written in the transaction of the fact it tells, and names it: no fact is told as two events.
-- What happened never changes; the columns from next_at on say how the telling stands, and exactly one of the three
-- times is set: waiting (or under way, until next_at), delivered, dead.
CREATE TABLE callback_event (
    voucher_id    bigint NOT NULL,
    happened_at   timestamptz NOT NULL,
    bucket        smallint NOT NULL,
    attempt       smallint NOT NULL CHECK (attempt >= 0),
    kind          callback_kind NOT NULL,
    partner_no    smallint NOT NULL,
    tries         smallint NOT NULL DEFAULT 0,
    next_at       timestamptz,
    delivered_at  timestamptz,
    died_at       timestamptz,
    last_error    text CHECK (length(last_error) <= 200),
    PRIMARY KEY (bucket, voucher_id, attempt, kind),
    CONSTRAINT one_state CHECK (num_nonnulls(next_at, delivered_at, died_at) = 1)
);
CREATE INDEX callback_event_due ON callback_event (partner_no, bucket, next_at) WHERE next_at IS NOT NULL;
CREATE INDEX callback_event_dead ON callback_event (partner_no, died_at) WHERE died_at IS NOT NULL;
COMMENT ON COLUMN callback_event.attempt IS 'Which use of the voucher it is about, 0 for none: attempt and kind are the order of a voucher''s events.';

-- Expiry is booked for a whole stock at once; the events of its vouchers are made from this row afterwards, part by part.
CREATE TABLE callback_expiry (
    bucket       smallint NOT NULL,
    stock_no     integer NOT NULL REFERENCES stock,
    expired_at   timestamptz NOT NULL,
    unfolded_to  bigint NOT NULL,
    unfolded_at  timestamptz,
    PRIMARY KEY (stock_no, bucket)
);
CREATE INDEX callback_expiry_open ON callback_expiry (expired_at) WHERE unfolded_at IS NULL;
COMMENT ON COLUMN callback_expiry.unfolded_to IS 'Vouchers of the round up to this number have been looked at.';

GRANT SELECT ON callback_subscription, callback_event, callback_expiry TO hanquan_issuer, hanquan_operator, hanquan_auditor;
GRANT SELECT (partner_no, kinds, is_active) ON callback_subscription TO hanquan_redemption;
GRANT SELECT ON callback_key TO hanquan_issuer;
GRANT SELECT (serial_no, partner_no, not_before) ON callback_key TO hanquan_operator;
GRANT INSERT ON callback_event TO hanquan_issuer, hanquan_redemption;
GRANT UPDATE (tries, next_at, delivered_at, died_at, last_error) ON callback_event TO hanquan_issuer, hanquan_operator;
GRANT UPDATE (unfolded_to, unfolded_at) ON callback_expiry TO hanquan_issuer;
GRANT INSERT ON callback_subscription, callback_key TO hanquan_operator;
GRANT UPDATE (url, kinds, is_active, may_be_private, retry_after_s, changed_at) ON callback_subscription TO hanquan_operator;

CREATE OR REPLACE FUNCTION redeem_batch(p_bucket smallint, p_at timestamptz, p_day date,
        p_voucher_id bigint[], p_stock_no integer[], p_merchant_no integer[], p_terminal_no integer[],
        p_bill_fen bigint[], p_subsidy_fen bigint[], p_use_request_no text[], p_order_no text[])
    RETURNS TABLE (item bigint, outcome redeem_outcome, redeemed_at timestamptz)
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    v_day date;
BEGIN
    PERFORM lock_bucket(p_bucket);
    v_day := first_open_day(p_bucket, p_day);
    RETURN QUERY
    WITH asked AS MATERIALIZED (
        SELECT * FROM unnest(p_voucher_id, p_stock_no, p_merchant_no, p_terminal_no, p_bill_fen, p_subsidy_fen,
                             p_use_request_no, p_order_no) WITH ORDINALITY
            AS a(voucher_id, stock_no, merchant_no, terminal_no, bill_fen, subsidy_fen, use_request_no, order_no, item)
    ), state AS MATERIALIZED (
        SELECT a.*, v.voucher_id IS NOT NULL AS is_issued, mine.redeemed_at AS mine_at,
               last.attempt AS last_attempt, last.credit AS last_credit
          FROM asked a
          LEFT JOIN voucher v ON v.bucket = p_bucket AND v.voucher_id = a.voucher_id
          LEFT JOIN LATERAL (SELECT r.redeemed_at FROM redemption r
                WHERE r.bucket = p_bucket AND r.voucher_id = a.voucher_id
                  AND r.merchant_no = a.merchant_no AND r.use_request_no = a.use_request_no) mine ON true
          LEFT JOIN LATERAL (SELECT r.attempt, f.credit FROM redemption r
                LEFT JOIN refund f ON f.bucket = r.bucket AND f.voucher_id = r.voucher_id AND f.attempt = r.attempt
                WHERE r.bucket = p_bucket AND r.voucher_id = a.voucher_id
                ORDER BY r.attempt DESC LIMIT 1) last ON true
    ), judged AS MATERIALIZED (
        SELECT s.*, (CASE
                WHEN s.mine_at IS NOT NULL THEN 'REPLAYED'
                WHEN NOT s.is_issued THEN 'CONFIRMING'
                WHEN s.last_attempt IS NOT NULL AND s.last_credit IS NULL THEN 'USED'
                WHEN s.last_credit = 'RETURNED' THEN 'RETURNED'
                WHEN is_stock_expired(p_bucket, s.stock_no) THEN 'EXPIRED'
                WHEN row_number() OVER (PARTITION BY s.voucher_id ORDER BY s.item) > 1 THEN 'USED'
                ELSE 'REDEEMED' END)::redeem_outcome AS outcome
          FROM state s
    ), booked AS (
        INSERT INTO redemption (voucher_id, subsidy_fen, bill_fen, redeemed_at, stock_no, merchant_no, terminal_no,
                                booked_on, bucket, attempt, use_request_no, order_no)
        SELECT j.voucher_id, j.subsidy_fen, j.bill_fen, p_at, j.stock_no, j.merchant_no, j.terminal_no,
               v_day, p_bucket, coalesce(j.last_attempt, 0) + 1, j.use_request_no, j.order_no
          FROM judged j WHERE j.outcome = 'REDEEMED' ORDER BY j.voucher_id
    ), told AS (
        INSERT INTO callback_event (bucket, voucher_id, attempt, kind, partner_no, happened_at, next_at)
        SELECT p_bucket, j.voucher_id, coalesce(j.last_attempt, 0) + 1, 'USED', c.partner_no, p_at, p_at
          FROM judged j JOIN stock k ON k.stock_no = j.stock_no JOIN callback_subscription c ON c.partner_no = k.partner_no
         WHERE j.outcome = 'REDEEMED' AND c.is_active AND 'USED' = ANY (c.kinds)
           AND EXISTS (SELECT FROM callback_subscription WHERE is_active) -- asked once: no subscriber, no look
    )
    SELECT j.item, j.outcome, coalesce(j.mine_at, p_at) FROM judged j;
END $$;

CREATE OR REPLACE FUNCTION refund_batch(p_bucket smallint, p_at timestamptz, p_day date,
        p_voucher_id bigint[], p_merchant_no integer[], p_use_request_no text[], p_refund_request_no text[], p_refund_fen bigint[])
    RETURNS TABLE (item bigint, outcome refund_outcome, credit account_kind, refunded_at timestamptz)
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
        SELECT * FROM unnest(p_voucher_id, p_merchant_no, p_use_request_no, p_refund_request_no, p_refund_fen)
            WITH ORDINALITY AS a(voucher_id, merchant_no, use_request_no, refund_request_no, refund_fen, item)
    ), state AS MATERIALIZED (
        SELECT a.item, a.refund_request_no, a.refund_fen, r.*, f.refund_request_no AS earlier_no, f.credit AS earlier_credit, f.refunded_at AS earlier_at,
               sum(r.subsidy_fen) FILTER (WHERE r.booked_on < v_first_open AND f.attempt IS NULL) OVER (PARTITION BY r.merchant_no ORDER BY a.item) AS asked_fen,
               row_number() OVER (PARTITION BY r.voucher_id, r.attempt ORDER BY a.item) AS turn
          FROM asked a
          LEFT JOIN LATERAL (SELECT r.voucher_id, r.attempt, r.merchant_no, r.stock_no, r.subsidy_fen, r.booked_on FROM redemption r
                WHERE r.bucket = p_bucket AND r.voucher_id = a.voucher_id
                  AND r.merchant_no = a.merchant_no AND r.use_request_no = a.use_request_no) r ON true
          LEFT JOIN refund f ON f.bucket = p_bucket AND f.voucher_id = r.voucher_id AND f.attempt = r.attempt
    ), judged AS MATERIALIZED (
        SELECT s.*, (CASE
                WHEN s.voucher_id IS NULL THEN 'NOT_FOUND'
                WHEN s.earlier_no = s.refund_request_no THEN 'REPLAYED'
                WHEN s.earlier_no IS NOT NULL OR s.turn > 1 THEN 'ALREADY_REFUNDED'
                WHEN s.booked_on < v_first_open AND refund_room_fen(p_bucket, s.merchant_no, v_first_open) < s.asked_fen THEN 'OVER_LIMIT'
                ELSE 'REFUNDED' END)::refund_outcome AS outcome,
               coalesce(s.earlier_credit, CASE WHEN k.refund_policy = 'RESTORE' AND p_at < k.valid_until
                    AND NOT is_stock_expired(p_bucket, s.stock_no) THEN 'ISSUED' ELSE 'RETURNED' END::account_kind) AS goes_to
          FROM state s LEFT JOIN stock k ON k.stock_no = s.stock_no
    ), booked AS (
        INSERT INTO refund (voucher_id, subsidy_fen, refund_fen, refunded_at, stock_no, merchant_no, booked_on,
                            bucket, attempt, credit, refund_request_no)
        SELECT j.voucher_id, j.subsidy_fen, j.refund_fen, p_at, j.stock_no, j.merchant_no, v_day,
               p_bucket, j.attempt, j.goes_to, j.refund_request_no
          FROM judged j WHERE j.outcome = 'REFUNDED' ORDER BY j.voucher_id
    ), told AS (
        INSERT INTO callback_event (bucket, voucher_id, attempt, kind, partner_no, happened_at, next_at)
        SELECT p_bucket, j.voucher_id, j.attempt, 'REFUNDED', c.partner_no, p_at, p_at
          FROM judged j JOIN stock k ON k.stock_no = j.stock_no JOIN callback_subscription c ON c.partner_no = k.partner_no
         WHERE j.outcome = 'REFUNDED' AND c.is_active AND 'REFUNDED' = ANY (c.kinds)
           AND EXISTS (SELECT FROM callback_subscription WHERE is_active)
    )
    SELECT j.item, j.outcome, j.goes_to, coalesce(j.earlier_at, p_at) FROM judged j;
END $$;

CREATE OR REPLACE FUNCTION expire_stock(p_bucket smallint, p_stock_no integer, p_at timestamptz) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_stock  stock;
    v_unused integer;
BEGIN
    SELECT * INTO STRICT v_stock FROM stock WHERE stock_no = p_stock_no;
    IF p_at <= v_stock.valid_until THEN
        RAISE EXCEPTION 'stock % is valid until %', v_stock.stock_id, v_stock.valid_until USING ERRCODE = 'HQ002';
    END IF;
    PERFORM lock_bucket(p_bucket);
    IF is_stock_expired(p_bucket, p_stock_no) THEN
        RETURN 0;
    END IF;
    SELECT count(*) INTO v_unused FROM voucher v
     WHERE v.bucket = p_bucket AND v.stock_no = p_stock_no
       AND v.voucher_id >= v_stock.round_no::bigint << 38 AND v.voucher_id < (v_stock.round_no::bigint + 1) << 38
       AND NOT EXISTS (SELECT FROM redemption r
                       LEFT JOIN refund f ON f.bucket = r.bucket AND f.voucher_id = r.voucher_id AND f.attempt = r.attempt
                       WHERE r.bucket = v.bucket AND r.voucher_id = v.voucher_id AND coalesce(f.credit, 'RETURNED') <> 'ISSUED');
    IF v_unused = 0 THEN
        RETURN 0;
    END IF;
    INSERT INTO transfer (bucket, campaign_no, kind, debit, credit, amount_fen, items, reference, booked_at)
    SELECT p_bucket, d.campaign_no, 'EXPIRE', 'ISSUED', 'RETURNED', v_unused * v_stock.funded_fen, v_unused,
           'stock ' || p_stock_no, p_at
      FROM round d WHERE d.round_no = v_stock.round_no;
    INSERT INTO callback_expiry (bucket, stock_no, expired_at, unfolded_to)
    SELECT p_bucket, p_stock_no, p_at, v_stock.round_no::bigint << 38 FROM callback_subscription c
     WHERE c.partner_no = v_stock.partner_no AND c.is_active AND 'EXPIRED' = ANY (c.kinds);
    RETURN v_unused;
END $$;
