-- Hanquan, the whole schema as it stands. Read this; the files in migrations/ lead here,
-- and a test proves that they do. PostgreSQL 15 or newer.
--
-- Conventions
--   *_fen      money in integer fen (1 yuan = 100 fen), BIGINT, never negative unless a comment says so
--   *_bp       hundredths of a percent; shares add up to 10,000
--   bucket     which part of the city a row lives in; a person's vouchers, redemptions and limits share
--              one bucket, and no statement of a hot path touches two (docs/architecture.md)
--   *_no       our short number of a thing; *_id is the name the outside world uses
-- Rows of money are only ever added. Whoever tries to change one is stopped twice: by privilege and
-- by a trigger that also stops the owner of the tables.

-- ---------------------------------------------------------------- kinds

CREATE TYPE account_kind AS ENUM (
    'CITY_FUND',   -- asset: the money the city set aside
    'BUDGET',      -- not yet issued
    'ISSUED',      -- liability for live vouchers
    'PAYABLE',     -- owed to a merchant
    'SETTLING',    -- in an approved batch, on its way to a merchant
    'PAID',        -- left the bank
    'RETURNED',    -- expired, or refunded when the voucher could not be given back
    'SUSPENSE'     -- unexplained until cleared
);

CREATE TYPE transfer_kind AS ENUM (
    'FUND', 'ISSUE', 'EXPIRE', 'SETTLE_HOLD', 'SETTLE_POST', 'SETTLE_VOID', 'RETURN', 'SUSPEND', 'CLEAR'
);

CREATE TYPE redeem_outcome AS ENUM ('REDEEMED', 'REPLAYED', 'CONFIRMING', 'USED', 'RETURNED', 'EXPIRED');
CREATE TYPE refund_outcome AS ENUM ('REFUNDED', 'REPLAYED', 'NOT_FOUND', 'ALREADY_REFUNDED', 'OVER_LIMIT');

-- ---------------------------------------------------------------- the installation and who takes part

CREATE TABLE city (
    singleton   boolean  PRIMARY KEY DEFAULT true CHECK (singleton),
    buckets     smallint NOT NULL CHECK (buckets BETWEEN 1 AND 1024),
    shards      smallint NOT NULL CHECK (shards BETWEEN 1 AND 1024)
);
COMMENT ON TABLE city IS 'Constants of this installation. Written once: the bucket of a person follows from them.';

CREATE TABLE partner (
    partner_no  smallint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    partner_id  text NOT NULL UNIQUE CHECK (partner_id ~ '^[a-z0-9_-]{2,32}$'),
    name_zh     text NOT NULL,
    name_en     text NOT NULL
);

CREATE TABLE merchant (
    merchant_no        integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    merchant_id        text NOT NULL UNIQUE CHECK (merchant_id ~ '^[A-Za-z0-9_-]{4,32}$'),
    name               text NOT NULL,
    category           text NOT NULL,
    district           text NOT NULL,
    payee_name         text NOT NULL,
    payee_account      text NOT NULL CHECK (payee_account ~ '^[0-9]{8,32}$'),
    payee_bank         text NOT NULL,
    suspended          boolean NOT NULL DEFAULT false,
    refund_debt_fen_max bigint NOT NULL DEFAULT 1000000 CHECK (refund_debt_fen_max >= 0)
);
COMMENT ON COLUMN merchant.refund_debt_fen_max IS 'How far below zero refunds of settled sales may take what the city owes this merchant, '
    'in each bucket: a till looks at one bucket only.';

CREATE TABLE terminal (
    terminal_no  integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    merchant_no  integer NOT NULL REFERENCES merchant,
    terminal_id  text NOT NULL CHECK (terminal_id ~ '^[A-Za-z0-9_-]{1,32}$'),
    suspended    boolean NOT NULL DEFAULT false,
    UNIQUE (merchant_no, terminal_id)
);

CREATE TABLE api_key (
    serial_no     text PRIMARY KEY CHECK (serial_no ~ '^[0-9A-F]{16,40}$'),
    holder_kind   text NOT NULL CHECK (holder_kind IN ('partner', 'merchant')),
    holder_id     text NOT NULL,
    terminal_no   integer REFERENCES terminal,
    algorithm     text NOT NULL CHECK (algorithm IN ('HMAC-SHA256', 'RSA-2048-SHA256')),
    key_material  bytea NOT NULL,
    not_before    timestamptz NOT NULL,
    not_after     timestamptz NOT NULL CHECK (not_after > not_before),
    revoked_at    timestamptz
);
COMMENT ON COLUMN api_key.key_material IS 'RSA: the public key (DER, SubjectPublicKeyInfo). HMAC: the secret, sealed with the master key.';

-- ---------------------------------------------------------------- campaigns

CREATE TABLE campaign (
    campaign_no  smallint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    campaign_id  text NOT NULL UNIQUE CHECK (campaign_id ~ '^[a-z0-9-]{3,40}$'),
    title_zh     text NOT NULL,
    title_en     text NOT NULL,
    fund_fen     bigint NOT NULL CHECK (fund_fen > 0),
    document     text NOT NULL,
    loaded_at    timestamptz NOT NULL
);
COMMENT ON COLUMN campaign.document IS 'The campaign file as it was loaded, letter by letter.';

CREATE TABLE round (
    round_no     smallint PRIMARY KEY CHECK (round_no BETWEEN 1 AND 1023),
    campaign_no  smallint NOT NULL REFERENCES campaign,
    round_id     text NOT NULL CHECK (round_id ~ '^[A-Za-z0-9-]{1,16}$'),
    opens_at     timestamptz NOT NULL,
    closes_at    timestamptz NOT NULL CHECK (closes_at > opens_at),
    budget_fen   bigint NOT NULL CHECK (budget_fen > 0),
    per_person_and_partner_limit smallint NOT NULL CHECK (per_person_and_partner_limit BETWEEN 1 AND 9),
    UNIQUE (campaign_no, round_id)
);

CREATE TABLE stock (
    stock_no                 integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    stock_id                 text NOT NULL UNIQUE CHECK (stock_id ~ '^[A-Za-z0-9_-]{4,40}$'),
    round_no                 smallint NOT NULL REFERENCES round,
    partner_no               smallint NOT NULL REFERENCES partner,
    category                 text NOT NULL,
    quantity                 integer NOT NULL CHECK (quantity > 0),
    face_value_fen           bigint NOT NULL CHECK (face_value_fen BETWEEN 1 AND 100000000),
    transaction_minimum_fen  bigint NOT NULL CHECK (transaction_minimum_fen >= face_value_fen),
    city_bp                  smallint NOT NULL CHECK (city_bp >= 0),
    platform_bp              smallint NOT NULL CHECK (platform_bp >= 0),
    merchant_bp              smallint NOT NULL CHECK (merchant_bp >= 0),
    funded_fen               bigint NOT NULL CHECK (funded_fen BETWEEN 1 AND face_value_fen),
    valid_from               timestamptz NOT NULL,
    valid_until              timestamptz NOT NULL CHECK (valid_until > valid_from),
    refund_policy            text NOT NULL CHECK (refund_policy IN ('RESTORE', 'RETURN_TO_BUDGET')),
    paused                   boolean NOT NULL DEFAULT false,
    CHECK (city_bp + platform_bp + merchant_bp = 10000)
);
COMMENT ON COLUMN stock.funded_fen IS 'What the fund pays a merchant for one voucher: the face less the share the merchant bears itself.';

-- ---------------------------------------------------------------- vouchers

-- voucher_id = round_no << 38 | partition << 28 | serial, so that a round is one range of numbers:
-- one partition of each table below, which can be detached when the round is long over.
-- No foreign key to stock: a check for each row would halve the drain; the audit checks it instead.
CREATE TABLE voucher (
    voucher_id      bigint NOT NULL,
    claimed_at      timestamptz NOT NULL,
    request_key     bigint NOT NULL,
    person          uuid NOT NULL,
    stock_no        integer NOT NULL,
    bucket          smallint NOT NULL,
    out_request_no  text COLLATE "C" NOT NULL,
    PRIMARY KEY (bucket, voucher_id)
) PARTITION BY RANGE (voucher_id);
-- Indexes beside a primary key start with another column than bucket: while a table is nearly empty the planner
-- takes any index whose first column it knows, and a plan that scans a whole bucket outlives the emptiness.
CREATE INDEX voucher_request ON voucher (request_key, bucket);
COMMENT ON COLUMN voucher.request_key IS 'First 8 bytes of a hash of partner and out_request_no; an index entry a third of the text''s size.';
COMMENT ON COLUMN voucher.person IS 'Keyed token of the person, 128 bits. Nothing else about a person is stored.';

CREATE TABLE drain_position (
    shard     smallint PRIMARY KEY,
    position  text NOT NULL
);
COMMENT ON TABLE drain_position IS 'Last stream entry of each shard that is in the voucher table; moved in the same transaction.';

CREATE TABLE request_clash (
    partner_no      smallint NOT NULL,
    out_request_no  text NOT NULL,
    first_voucher   bigint NOT NULL,
    second_voucher  bigint NOT NULL,
    seen_at         timestamptz NOT NULL,
    PRIMARY KEY (first_voucher, second_voucher)
);
COMMENT ON TABLE request_clash IS 'One claim number used for two people on two shards: both hold a voucher, the partner is told.';

-- ---------------------------------------------------------------- the ledger: accounts and transfers

CREATE TABLE account (
    bucket       smallint NOT NULL,
    campaign_no  smallint NOT NULL REFERENCES campaign,
    merchant_no  integer NOT NULL,
    kind         account_kind NOT NULL,
    debits_fen   bigint NOT NULL DEFAULT 0 CHECK (debits_fen BETWEEN 0 AND 1000000000000000),
    credits_fen  bigint NOT NULL DEFAULT 0 CHECK (credits_fen BETWEEN 0 AND 1000000000000000),
    PRIMARY KEY (bucket, campaign_no, merchant_no, kind),
    CONSTRAINT fund_not_overdrawn CHECK (kind <> 'CITY_FUND' OR debits_fen >= credits_fen),
    CONSTRAINT not_overdrawn CHECK (kind IN ('CITY_FUND', 'PAYABLE', 'ISSUED') OR credits_fen >= debits_fen)
);
COMMENT ON TABLE account IS 'A checkpoint: sums of all rows of transfer and of the closed days of merchant_day. '
    'Today''s redemptions and refunds come on top (view balance). merchant_no 0: not one merchant''s.';

CREATE TABLE transfer (
    transfer_id  bigint GENERATED ALWAYS AS IDENTITY,
    bucket       smallint NOT NULL,
    campaign_no  smallint NOT NULL REFERENCES campaign,
    merchant_no  integer NOT NULL DEFAULT 0,
    kind         transfer_kind NOT NULL,
    debit        account_kind NOT NULL,
    credit       account_kind NOT NULL,
    amount_fen   bigint NOT NULL CHECK (amount_fen BETWEEN 1 AND 1000000000000000),
    items        integer NOT NULL DEFAULT 0 CHECK (items >= 0),
    items_hash   bytea,
    reference    text NOT NULL CHECK (length(reference) BETWEEN 1 AND 120),
    booked_at    timestamptz NOT NULL,
    PRIMARY KEY (bucket, transfer_id),
    UNIQUE (reference, kind, bucket),
    CONSTRAINT accounts_fit_kind CHECK (
        (kind = 'FUND'        AND debit = 'CITY_FUND' AND credit = 'BUDGET') OR
        (kind = 'ISSUE'       AND debit = 'BUDGET'    AND credit = 'ISSUED' AND items > 0) OR
        (kind = 'EXPIRE'      AND debit = 'ISSUED'    AND credit = 'RETURNED' AND items > 0) OR
        (kind = 'SETTLE_HOLD' AND debit IN ('PAYABLE', 'SETTLING') AND credit IN ('PAYABLE', 'SETTLING') AND debit <> credit) OR
        (kind = 'SETTLE_VOID' AND debit IN ('PAYABLE', 'SETTLING') AND credit IN ('PAYABLE', 'SETTLING') AND debit <> credit) OR
        (kind = 'SETTLE_POST' AND debit = 'SETTLING'  AND credit = 'PAID') OR
        (kind = 'RETURN'      AND debit = 'RETURNED'  AND credit IN ('CITY_FUND', 'BUDGET')) OR
        (kind = 'SUSPEND'     AND credit = 'SUSPENSE' AND debit IN ('SETTLING', 'RETURNED')) OR
        (kind = 'CLEAR'       AND debit = 'SUSPENSE'  AND credit IN ('SETTLING', 'RETURNED'))),
    CONSTRAINT merchant_named CHECK (
        (merchant_no > 0) = ('PAYABLE' IN (debit, credit) OR 'SETTLING' IN (debit, credit)))
);
COMMENT ON TABLE transfer IS 'Every movement of money but redemptions and refunds, which are their own rows. '
    'reference says what it is for, and makes a second posting of the same thing impossible.';

-- Where an account of a kind lives: only what a till moves is split by bucket.
CREATE FUNCTION account_bucket(kind account_kind, bucket smallint) RETURNS smallint
    LANGUAGE sql IMMUTABLE AS $$ SELECT CASE WHEN kind IN ('ISSUED', 'PAYABLE') THEN bucket ELSE 0::smallint END $$;
CREATE FUNCTION account_merchant(kind account_kind, merchant_no integer) RETURNS integer
    LANGUAGE sql IMMUTABLE AS $$ SELECT CASE WHEN kind IN ('PAYABLE', 'SETTLING') THEN merchant_no ELSE 0 END $$;

-- ---------------------------------------------------------------- redemptions and refunds

-- The row of a redemption is its transfer, ISSUED -> PAYABLE of subsidy_fen; nothing is written twice.
CREATE TABLE redemption (
    voucher_id      bigint NOT NULL,
    subsidy_fen     bigint NOT NULL CHECK (subsidy_fen > 0),
    bill_fen        bigint NOT NULL CHECK (bill_fen BETWEEN 1 AND 1000000000000),
    redeemed_at     timestamptz NOT NULL,
    stock_no        integer NOT NULL,
    merchant_no     integer NOT NULL,
    terminal_no     integer NOT NULL,
    booked_on       date NOT NULL,
    bucket          smallint NOT NULL,
    attempt         smallint NOT NULL CHECK (attempt > 0),
    use_request_no  text COLLATE "C" NOT NULL,
    order_no        text COLLATE "C" NOT NULL,
    PRIMARY KEY (bucket, voucher_id, attempt)
) PARTITION BY RANGE (voucher_id);
CREATE INDEX redemption_day ON redemption USING brin (booked_on) WITH (pages_per_range = 32, autosummarize = on);
COMMENT ON COLUMN redemption.order_no IS 'The shop''s payment; one city voucher a payment.';
COMMENT ON COLUMN redemption.attempt IS '1 for the first use; a voucher that a refund gave back may be used again.';
COMMENT ON COLUMN redemption.booked_on IS 'Business day (Asia/Shanghai) whose settlement pays it; never a day already closed.';

-- refund_fen is the cash the customer got back, subsidy_fen what the city takes back from the merchant:
-- PAYABLE -> ISSUED (the voucher lives again) or PAYABLE -> RETURNED (it does not).
CREATE TABLE refund (
    voucher_id         bigint NOT NULL,
    subsidy_fen        bigint NOT NULL CHECK (subsidy_fen > 0),
    refund_fen         bigint NOT NULL CHECK (refund_fen > 0),
    refunded_at        timestamptz NOT NULL,
    stock_no           integer NOT NULL,
    merchant_no        integer NOT NULL,
    booked_on          date NOT NULL,
    bucket             smallint NOT NULL,
    attempt            smallint NOT NULL,
    credit             account_kind NOT NULL CHECK (credit IN ('ISSUED', 'RETURNED')),
    refund_request_no  text COLLATE "C" NOT NULL,
    PRIMARY KEY (bucket, voucher_id, attempt),
    FOREIGN KEY (bucket, voucher_id, attempt) REFERENCES redemption
) PARTITION BY RANGE (voucher_id);
CREATE INDEX refund_merchant ON refund (merchant_no, bucket, booked_on);

-- A till's numbers, unique over all buckets: a row lives in the bucket of its own key's hash and is
-- written before the redemption it belongs to. A row whose redemption lost a race stays: the number
-- is bound to what it was first sent with.
CREATE TABLE request_number (
    request_key  uuid NOT NULL,
    body_hash    bigint NOT NULL,
    voucher_id   bigint NOT NULL,
    bucket       smallint NOT NULL,
    PRIMARY KEY (bucket, request_key)
);

-- Closed days. Once a day is closed nothing can be booked on it; it is folded into merchant_day and account.
CREATE TABLE day_close (
    bucket     smallint NOT NULL,
    day        date NOT NULL,
    closed_at  timestamptz NOT NULL,
    PRIMARY KEY (bucket, day)
);

CREATE TABLE merchant_day (
    bucket          smallint NOT NULL,
    campaign_no     smallint NOT NULL REFERENCES campaign,
    merchant_no     integer NOT NULL,
    day             date NOT NULL,
    redeemed_count  integer NOT NULL,
    redeemed_fen    bigint NOT NULL,
    bills_fen       bigint NOT NULL,
    refunded_count  integer NOT NULL,
    refunded_fen    bigint NOT NULL,
    restored_fen    bigint NOT NULL CHECK (restored_fen BETWEEN 0 AND refunded_fen),
    PRIMARY KEY (bucket, campaign_no, merchant_no, day)
);
COMMENT ON COLUMN merchant_day.restored_fen IS 'The part of refunded_fen that went back to ISSUED; the rest went to RETURNED.';

-- Held merchants: their lines stay out of settlement until released. Both tables only grow.
CREATE TABLE merchant_hold (
    hold_id      bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    merchant_no  integer NOT NULL REFERENCES merchant,
    reason_code  text NOT NULL,
    reason       text NOT NULL,
    placed_at    timestamptz NOT NULL
);
CREATE TABLE merchant_hold_release (
    hold_id      bigint PRIMARY KEY REFERENCES merchant_hold,
    released_by  text NOT NULL,
    note         text NOT NULL,
    released_at  timestamptz NOT NULL
);
CREATE VIEW merchant_held AS
    SELECT h.* FROM merchant_hold h WHERE NOT EXISTS (SELECT FROM merchant_hold_release r WHERE r.hold_id = h.hold_id);

-- ---------------------------------------------------------------- views to read

CREATE VIEW posting AS
    SELECT account_bucket(t.debit, t.bucket) AS debit_bucket, account_merchant(t.debit, t.merchant_no) AS debit_merchant_no, t.debit,
           account_bucket(t.credit, t.bucket) AS credit_bucket, account_merchant(t.credit, t.merchant_no) AS credit_merchant_no, t.credit,
           t.campaign_no, t.kind::text AS kind, t.amount_fen, t.reference, t.booked_at
      FROM transfer t
    UNION ALL
    SELECT r.bucket, 0, 'ISSUED', r.bucket, r.merchant_no, 'PAYABLE',
           d.campaign_no, 'REDEEM', r.subsidy_fen, r.voucher_id || '/' || r.attempt, r.redeemed_at
      FROM redemption r JOIN stock s USING (stock_no) JOIN round d USING (round_no)
    UNION ALL
    SELECT f.bucket, f.merchant_no, 'PAYABLE', account_bucket(f.credit, f.bucket), 0, f.credit,
           d.campaign_no, 'REFUND', f.subsidy_fen, f.voucher_id || '/' || f.attempt, f.refunded_at
      FROM refund f JOIN stock s USING (stock_no) JOIN round d USING (round_no);
COMMENT ON VIEW posting IS 'Every movement of money there ever was, with both accounts. The audit reads this and nothing derived.';

CREATE VIEW last_closed AS
    SELECT b::smallint AS bucket, coalesce((SELECT max(c.day) FROM day_close c WHERE c.bucket = b), '-infinity') AS day
      FROM city, generate_series(0, buckets - 1) AS b;
COMMENT ON VIEW last_closed IS 'The last closed day of each bucket.';

-- The least of the closed days is asked for apart, so that the index on days can leave old pages out.
CREATE VIEW open_day_posting AS
    SELECT r.bucket, d.campaign_no, r.merchant_no, r.subsidy_fen AS redeemed_fen, 0::bigint AS refunded_fen, 0::bigint AS restored_fen
      FROM redemption r JOIN last_closed c ON c.bucket = r.bucket AND r.booked_on > c.day
      JOIN stock s USING (stock_no) JOIN round d USING (round_no)
     WHERE r.booked_on > (SELECT min(day) FROM last_closed)
    UNION ALL
    SELECT f.bucket, d.campaign_no, f.merchant_no, 0, f.subsidy_fen, CASE WHEN f.credit = 'ISSUED' THEN f.subsidy_fen ELSE 0 END
      FROM refund f JOIN last_closed c ON c.bucket = f.bucket AND f.booked_on > c.day
      JOIN stock s USING (stock_no) JOIN round d USING (round_no)
     WHERE f.booked_on > (SELECT min(day) FROM last_closed);
COMMENT ON VIEW open_day_posting IS 'The tail: what tills moved on days not yet closed.';

CREATE VIEW balance AS
    WITH movement AS (
        SELECT bucket, campaign_no, merchant_no, kind, debits_fen, credits_fen FROM account
        UNION ALL SELECT bucket, campaign_no, 0, 'ISSUED', redeemed_fen, restored_fen FROM open_day_posting
        UNION ALL SELECT bucket, campaign_no, merchant_no, 'PAYABLE', refunded_fen, redeemed_fen FROM open_day_posting
        UNION ALL SELECT 0, campaign_no, 0, 'RETURNED', 0, refunded_fen - restored_fen FROM open_day_posting
    )
    SELECT bucket, campaign_no, merchant_no, kind,
           sum(debits_fen)::bigint AS debits_fen, sum(credits_fen)::bigint AS credits_fen,
           (CASE WHEN kind = 'CITY_FUND' THEN sum(debits_fen - credits_fen) ELSE sum(credits_fen - debits_fen) END)::bigint AS balance_fen
      FROM movement GROUP BY bucket, campaign_no, merchant_no, kind;
COMMENT ON VIEW balance IS 'What each account holds now: checkpoint plus tail.';

-- ---------------------------------------------------------------- triggers

CREATE FUNCTION forbid_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'rows of % are only ever added', TG_TABLE_NAME USING ERRCODE = 'HQ001';
END $$;

CREATE FUNCTION make_append_only(p_table regclass) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON %s FOR EACH ROW EXECUTE FUNCTION forbid_change()', p_table);
    EXECUTE format('CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION forbid_change()', p_table);
END $$;

SELECT make_append_only(t) FROM unnest(ARRAY['voucher', 'redemption', 'refund', 'transfer', 'day_close',
    'merchant_day', 'merchant_hold', 'merchant_hold_release', 'campaign', 'city']::regclass[]) AS t;

-- Adds sums to accounts; always in the order of the primary key, so that two writers never deadlock.
-- Its plan may be older than the accounts: without enable_seqscan = off it would read all of them for each.
-- A row is made empty and then updated: in an upsert the overdraft checks would judge the row that is
-- proposed (a bare debit), not the one it becomes.
CREATE FUNCTION add_to_accounts(p_bucket smallint[], p_campaign_no smallint[], p_merchant_no integer[], p_kind account_kind[],
                                p_debits_fen bigint[], p_credits_fen bigint[]) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET enable_seqscan = off AS $$
DECLARE
    m record;
BEGIN
    FOR m IN SELECT bucket, campaign_no, merchant_no, kind, sum(debits_fen)::bigint AS debits_fen, sum(credits_fen)::bigint AS credits_fen
               FROM unnest(p_bucket, p_campaign_no, p_merchant_no, p_kind, p_debits_fen, p_credits_fen)
                    AS movement(bucket, campaign_no, merchant_no, kind, debits_fen, credits_fen)
              GROUP BY bucket, campaign_no, merchant_no, kind ORDER BY bucket, campaign_no, merchant_no, kind LOOP
        INSERT INTO account (bucket, campaign_no, merchant_no, kind) VALUES (m.bucket, m.campaign_no, m.merchant_no, m.kind)
        ON CONFLICT DO NOTHING;
        UPDATE account a SET debits_fen = a.debits_fen + m.debits_fen, credits_fen = a.credits_fen + m.credits_fen
         WHERE a.bucket = m.bucket AND a.campaign_no = m.campaign_no AND a.merchant_no = m.merchant_no AND a.kind = m.kind;
    END LOOP;
END $$;

CREATE FUNCTION post_to_accounts() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM add_to_accounts(array_agg(bucket), array_agg(campaign_no), array_agg(merchant_no), array_agg(kind),
                            array_agg(debits_fen), array_agg(credits_fen))
       FROM (SELECT account_bucket(debit, bucket) AS bucket, campaign_no, account_merchant(debit, merchant_no) AS merchant_no,
                    debit AS kind, amount_fen AS debits_fen, 0::bigint AS credits_fen FROM posted
             UNION ALL
             SELECT account_bucket(credit, bucket), campaign_no, account_merchant(credit, merchant_no),
                    credit, 0, amount_fen FROM posted) AS m
     HAVING count(*) > 0;
    RETURN NULL;
END $$;

CREATE TRIGGER post_to_accounts AFTER INSERT ON transfer
    REFERENCING NEW TABLE AS posted FOR EACH STATEMENT EXECUTE FUNCTION post_to_accounts();

-- ---------------------------------------------------------------- functions to write

-- Advisory locks, all of them: 4817 a bucket, 4818 the drain of a shard (and, as a single number, the cases of
-- anti-fraud), 4819 the settlement of a campaign, 4821 loading a campaign, 4822 publishing a round.
--
-- One writer a bucket at a time. Requests arrive in batches, so the wait is one group commit, and
-- in return no two checkouts, refunds, expiries or day closes of a bucket ever overlap.
CREATE FUNCTION lock_bucket(p_bucket smallint) RETURNS void
    LANGUAGE sql AS $$ SELECT pg_advisory_xact_lock(4817, p_bucket) $$;

CREATE FUNCTION first_open_day(p_bucket smallint, p_day date) RETURNS date
    LANGUAGE sql STABLE AS $$
    SELECT greatest(p_day, (SELECT max(day) + 1 FROM day_close WHERE bucket = p_bucket)) $$;

CREATE FUNCTION is_stock_expired(p_bucket smallint, p_stock_no integer) RETURNS boolean
    LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM transfer WHERE bucket = p_bucket AND kind = 'EXPIRE' AND reference = 'stock ' || p_stock_no) $$;

-- The storage of a round: one partition of each voucher table, guarded like its parent.
CREATE FUNCTION open_round_storage(p_round_no smallint) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_table text;
    v_part  text;
BEGIN
    FOREACH v_table IN ARRAY ARRAY['voucher', 'redemption', 'refund'] LOOP
        v_part := v_table || '_r' || p_round_no;
        EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%s) TO (%s)',
                       v_part, v_table, p_round_no::bigint << 38, (p_round_no::bigint + 1) << 38);
        EXECUTE format('CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION forbid_change()', v_part);
    END LOOP;
END $$;

-- Redeems vouchers of one bucket: each item judged on its own, all committed together.
-- A connection keeps the plan it made when the tables were still empty; SET makes that plan one by keys.
-- The caller has checked the offer's rules (they never change) and registered the numbers; here only
-- what another request may have changed is decided. Array position = item number in the answer, from 1.
CREATE FUNCTION redeem_batch(p_bucket smallint, p_at timestamptz, p_day date,
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
    )
    SELECT j.item, j.outcome, coalesce(j.mine_at, p_at) FROM judged j;
END $$;

-- Refunds redemptions of one bucket, in full. Each names the redemption by the till's own number.
CREATE FUNCTION refund_batch(p_bucket smallint, p_at timestamptz, p_day date,
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
    )
    SELECT j.item, j.outcome, j.goes_to, coalesce(j.earlier_at, p_at) FROM judged j;
END $$;

-- How much more of the sales of closed days may be refunded at a merchant before it owes the city more than
-- agreed. What it is owed for closed days is no room: a batch may be paying that out right now. Refunds of
-- sales of an open day do not count: each takes back its own sale and no more.
CREATE FUNCTION refund_room_fen(p_bucket smallint, p_merchant_no integer, p_first_open date) RETURNS bigint
    LANGUAGE sql STABLE AS $$
    SELECT ((SELECT m.refund_debt_fen_max FROM merchant m WHERE m.merchant_no = p_merchant_no)
         + least(0, coalesce((SELECT sum(a.credits_fen - a.debits_fen) FROM account a
                      WHERE a.bucket = p_bucket AND a.merchant_no = p_merchant_no AND a.kind = 'PAYABLE'), 0))
         - coalesce((SELECT sum(f.subsidy_fen) FROM refund f
                       JOIN redemption r ON r.bucket = f.bucket AND r.voucher_id = f.voucher_id AND r.attempt = f.attempt
                      WHERE f.bucket = p_bucket AND f.merchant_no = p_merchant_no AND f.booked_on >= p_first_open
                        AND r.booked_on < p_first_open), 0))::bigint
$$;

-- Closes a day in one bucket: nothing can be booked on it from here on, and its rows are folded into
-- merchant_day and account. Closing a closed day does nothing. Days close in order, each its turn.
CREATE FUNCTION close_day(p_bucket smallint, p_day date, p_at timestamptz) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_closed date;
BEGIN
    PERFORM lock_bucket(p_bucket);
    v_closed := (SELECT max(day) FROM day_close WHERE bucket = p_bucket);
    IF v_closed >= p_day THEN
        RETURN false;
    END IF;
    WITH fold AS (
        SELECT campaign_no, merchant_no, booked_on, count(*) FILTER (WHERE is_use) AS redeemed_count,
               coalesce(sum(fen) FILTER (WHERE is_use), 0) AS redeemed_fen, sum(bill_fen) AS bills_fen,
               count(*) FILTER (WHERE NOT is_use) AS refunded_count,
               coalesce(sum(fen) FILTER (WHERE NOT is_use), 0) AS refunded_fen,
               coalesce(sum(fen) FILTER (WHERE restores), 0) AS restored_fen
          FROM (SELECT stock_no, merchant_no, booked_on, true AS is_use, subsidy_fen AS fen, bill_fen, false AS restores
                  FROM redemption WHERE bucket = p_bucket AND booked_on <= p_day AND booked_on > coalesce(v_closed, '-infinity')
                UNION ALL
                SELECT stock_no, merchant_no, booked_on, false, subsidy_fen, 0, credit = 'ISSUED'
                  FROM refund WHERE bucket = p_bucket AND booked_on <= p_day AND booked_on > coalesce(v_closed, '-infinity')) AS row
          JOIN stock USING (stock_no) JOIN round USING (round_no)
         GROUP BY campaign_no, merchant_no, booked_on
    ), folded AS (
        INSERT INTO merchant_day (bucket, campaign_no, merchant_no, day, redeemed_count, redeemed_fen, bills_fen,
                                  refunded_count, refunded_fen, restored_fen)
        SELECT p_bucket, campaign_no, merchant_no, booked_on, redeemed_count, redeemed_fen, bills_fen,
               refunded_count, refunded_fen, restored_fen FROM fold
        RETURNING campaign_no, merchant_no, redeemed_fen, refunded_fen, restored_fen
    ), movement AS (
        SELECT p_bucket AS bucket, campaign_no, 0 AS merchant_no, 'ISSUED'::account_kind AS kind,
               sum(redeemed_fen)::bigint AS debits_fen, sum(restored_fen)::bigint AS credits_fen FROM folded GROUP BY campaign_no
        UNION ALL
        SELECT p_bucket, campaign_no, merchant_no, 'PAYABLE', sum(refunded_fen)::bigint, sum(redeemed_fen)::bigint
          FROM folded GROUP BY campaign_no, merchant_no
        UNION ALL
        SELECT 0::smallint, campaign_no, 0, 'RETURNED', 0, sum(refunded_fen - restored_fen)::bigint FROM folded GROUP BY campaign_no
    )
    SELECT NULL FROM (
        SELECT add_to_accounts(array_agg(bucket), array_agg(campaign_no), array_agg(merchant_no), array_agg(kind),
                               array_agg(debits_fen), array_agg(credits_fen)) FROM movement HAVING count(*) > 0) AS done INTO v_closed;
    INSERT INTO day_close (bucket, day, closed_at) VALUES (p_bucket, p_day, p_at);
    RETURN true;
END $$;

-- Moves the money of a stock's unused vouchers in one bucket from ISSUED to RETURNED, once, after the
-- last second in which one could be used. Answers how many vouchers that were (0: none, or done before).
CREATE FUNCTION expire_stock(p_bucket smallint, p_stock_no integer, p_at timestamptz) RETURNS integer
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
    RETURN v_unused;
END $$;

-- Tells the planner how many rows there are now. A round fills its tables in minutes, and nothing else ever
-- looks at partitioned tables as a whole; whoever reads everything (audit, reconciliation) calls this first.
CREATE FUNCTION refresh_statistics() RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    ANALYZE voucher, redemption, refund, request_number, transfer, account, merchant_day, merchant, stock;
END $$;

-- ---------------------------------------------------------------- who may do what

REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO hanquan_issuer, hanquan_redemption, hanquan_finance, hanquan_antifraud, hanquan_operator, hanquan_auditor;
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA public FROM PUBLIC;

GRANT SELECT ON ALL TABLES IN SCHEMA public TO hanquan_auditor;
REVOKE SELECT ON api_key FROM hanquan_auditor;

GRANT SELECT ON city, partner, merchant, terminal, campaign, round, stock
   TO hanquan_issuer, hanquan_redemption, hanquan_finance, hanquan_antifraud, hanquan_operator;
GRANT SELECT ON api_key TO hanquan_issuer, hanquan_redemption, hanquan_operator;

GRANT SELECT, INSERT ON voucher, request_clash, transfer TO hanquan_issuer;
GRANT SELECT, INSERT, UPDATE ON drain_position TO hanquan_issuer;
GRANT SELECT ON redemption, refund, account TO hanquan_issuer;

GRANT SELECT ON voucher, transfer, day_close, account, merchant_day, merchant_held TO hanquan_redemption;
GRANT SELECT, INSERT ON redemption, refund TO hanquan_redemption;
GRANT SELECT, INSERT ON request_number TO hanquan_redemption;
GRANT EXECUTE ON FUNCTION redeem_batch, refund_batch, refund_room_fen, lock_bucket, first_open_day, is_stock_expired TO hanquan_redemption;

GRANT SELECT ON voucher, redemption, refund, day_close, account, merchant_day, merchant_hold, merchant_hold_release,
                merchant_held, posting, open_day_posting, balance, drain_position TO hanquan_finance, hanquan_operator;
GRANT SELECT, INSERT ON transfer TO hanquan_finance, hanquan_operator;
GRANT EXECUTE ON FUNCTION close_day, expire_stock, lock_bucket TO hanquan_finance;
GRANT EXECUTE ON FUNCTION refresh_statistics TO hanquan_finance, hanquan_auditor;
GRANT INSERT ON merchant_hold_release TO hanquan_finance;

GRANT INSERT ON city, partner, campaign, round, stock, merchant, terminal, api_key TO hanquan_operator;
GRANT UPDATE (paused) ON stock TO hanquan_operator;
GRANT UPDATE (suspended) ON merchant, terminal TO hanquan_operator;
GRANT UPDATE (revoked_at, not_after) ON api_key TO hanquan_operator;
GRANT EXECUTE ON FUNCTION open_round_storage TO hanquan_operator;

GRANT SELECT, INSERT ON merchant_hold TO hanquan_antifraud;
GRANT SELECT ON merchant_held TO hanquan_antifraud;

GRANT EXECUTE ON FUNCTION account_bucket, account_merchant
   TO hanquan_issuer, hanquan_redemption, hanquan_finance, hanquan_operator, hanquan_auditor;

-- A service posts its own kinds of transfer and no other.
ALTER TABLE transfer ENABLE ROW LEVEL SECURITY;
CREATE POLICY read_all ON transfer FOR SELECT USING (true);
CREATE POLICY issuer_issues ON transfer FOR INSERT TO hanquan_issuer WITH CHECK (kind = 'ISSUE');
CREATE POLICY operator_funds ON transfer FOR INSERT TO hanquan_operator WITH CHECK (kind = 'FUND');
CREATE POLICY finance_settles ON transfer FOR INSERT TO hanquan_finance
    WITH CHECK (kind IN ('SUSPEND', 'CLEAR'));
