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
CREATE TYPE hold_outcome AS ENUM ('CONFIRMED', 'CANCELLED');
CREATE TYPE cap_period AS ENUM ('MONTH', 'CAMPAIGN');

CREATE TYPE stock_state AS ENUM (
    'DRAFT',      -- being prepared
    'AUDIT',      -- submitted; somebody else must approve it
    'SCHEDULED',  -- runs between the opening and the closing of its round
    'PAUSED',     -- held back by an operator
    'ENDED',      -- over: before its time, or because its round closed
    'CLOSED'      -- all its wins are in the books; nothing changes any more
);
CREATE TYPE stock_verb AS ENUM ('SUBMIT', 'APPROVE', 'REJECT', 'PAUSE', 'RESUME', 'END', 'CLOSE');
CREATE TYPE edit_state AS ENUM ('PENDING', 'DONE', 'REFUSED');

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
    name_en     text NOT NULL,
    claims_per_s_max integer CHECK (claims_per_s_max > 0)
);
COMMENT ON COLUMN partner.claims_per_s_max IS 'Claims a second that the partner may send, over all workers; no limit when null.';

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
    refund_debt_fen_max bigint NOT NULL DEFAULT 1000000 CHECK (refund_debt_fen_max >= 0),
    suspended_until    timestamptz,
    CHECK (suspended OR suspended_until IS NULL)
);
COMMENT ON COLUMN merchant.suspended_until IS 'When a suspension ends by itself; null: when somebody resumes it.';
COMMENT ON COLUMN merchant.refund_debt_fen_max IS 'How far below zero refunds of settled sales may take what the city owes this merchant, '
    'in each bucket: a till looks at one bucket only.';

CREATE TABLE terminal (
    terminal_no  integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    merchant_no  integer NOT NULL REFERENCES merchant,
    terminal_id  text NOT NULL CHECK (terminal_id ~ '^[A-Za-z0-9_-]{1,32}$'),
    suspended    boolean NOT NULL DEFAULT false,
    store_no     integer,
    UNIQUE (merchant_no, terminal_id)
);

CREATE TABLE api_key (
    serial_no     text PRIMARY KEY CHECK (serial_no ~ '^[0-9A-F]{16,40}$'),
    holder_kind   text NOT NULL CHECK (holder_kind IN ('partner', 'merchant', 'operator')),
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
    loaded_at    timestamptz NOT NULL,
    face_fen_per_person_max bigint CHECK (face_fen_per_person_max > 0)
);
COMMENT ON COLUMN campaign.document IS 'The campaign file as it was loaded, letter by letter.';
COMMENT ON COLUMN campaign.face_fen_per_person_max IS 'Face of all vouchers that one person may claim in the whole campaign; none when null.';

CREATE TABLE round (
    round_no     smallint PRIMARY KEY CHECK (round_no BETWEEN 1 AND 1023),
    campaign_no  smallint NOT NULL REFERENCES campaign,
    round_id     text NOT NULL CHECK (round_id ~ '^[A-Za-z0-9-]{1,16}$'),
    opens_at     timestamptz NOT NULL,
    closes_at    timestamptz NOT NULL CHECK (closes_at > opens_at),
    budget_fen   bigint NOT NULL CHECK (budget_fen >= 0),
    per_person_and_partner_limit smallint NOT NULL CHECK (per_person_and_partner_limit BETWEEN 1 AND 9),
    per_person_limit smallint CHECK (per_person_limit BETWEEN 1 AND 99),
    UNIQUE (campaign_no, round_id)
);
COMMENT ON COLUMN round.budget_fen IS 'What its vouchers may cost; moved by rollovers only.';
COMMENT ON COLUMN round.per_person_limit IS 'Claims of one person in this round over all partners; none when null.';

CREATE TABLE claim_group (
    round_no          smallint NOT NULL REFERENCES round,
    group_no          smallint NOT NULL CHECK (group_no BETWEEN 1 AND 255),
    group_id          text NOT NULL CHECK (group_id ~ '^[a-z0-9-]{2,32}$'),
    per_person_limit  smallint NOT NULL CHECK (per_person_limit BETWEEN 1 AND 99),
    PRIMARY KEY (round_no, group_no),
    UNIQUE (round_no, group_id)
);
COMMENT ON TABLE claim_group IS 'Stocks and packs of a round of which a person may claim only so many together, whoever the partner is.';

CREATE TABLE release_stage (
    round_no  smallint NOT NULL REFERENCES round,
    after_s   integer NOT NULL CHECK (after_s >= 0),
    share_bp  smallint NOT NULL CHECK (share_bp BETWEEN 1 AND 10000),
    PRIMARY KEY (round_no, after_s)
);
COMMENT ON TABLE release_stage IS 'So much of each stock can be claimed from so many seconds after the opening on; a round without rows releases all at once.';

CREATE TABLE stock (
    stock_no                 integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    stock_id                 text NOT NULL UNIQUE CHECK (stock_id ~ '^[A-Za-z0-9_-]{4,40}$'),
    round_no                 smallint NOT NULL REFERENCES round,
    partner_no               smallint NOT NULL REFERENCES partner,
    category                 text NOT NULL,
    quantity                 integer NOT NULL CHECK (quantity >= 0),
    face_value_fen           bigint NOT NULL CHECK (face_value_fen BETWEEN 1 AND 100000000),
    transaction_minimum_fen  bigint NOT NULL CHECK (transaction_minimum_fen >= face_value_fen),
    city_bp                  smallint NOT NULL CHECK (city_bp >= 0),
    platform_bp              smallint NOT NULL CHECK (platform_bp >= 0),
    merchant_bp              smallint NOT NULL CHECK (merchant_bp >= 0),
    funded_fen               bigint NOT NULL CHECK (funded_fen BETWEEN 1 AND face_value_fen),
    valid_from               timestamptz NOT NULL,
    valid_until              timestamptz NOT NULL CHECK (valid_until > valid_from),
    refund_policy            text NOT NULL CHECK (refund_policy IN ('RESTORE', 'RETURN_TO_BUDGET', 'PAID_SHARE')),
    group_no                 smallint,
    is_granted               boolean NOT NULL DEFAULT false,
    state                    stock_state NOT NULL DEFAULT 'DRAFT',
    adjust_no                bigint NOT NULL DEFAULT 0,
    valid_days               smallint CHECK (valid_days BETWEEN 1 AND 366),
    stacks_with              text[] NOT NULL DEFAULT '{SHOP,PLATFORM}' CHECK (stacks_with <@ '{SHOP,PLATFORM}'),
    till_code                text NOT NULL DEFAULT 'ANY' CHECK (till_code IN ('ANY', 'ROTATING')),
    CHECK (city_bp + platform_bp + merchant_bp = 10000),
    FOREIGN KEY (round_no, group_no) REFERENCES claim_group
);
COMMENT ON COLUMN stock.funded_fen IS 'What the fund pays a merchant for one voucher: the face less the share the merchant bears itself.';
COMMENT ON COLUMN stock.state IS 'As it was last moved; a stock whose round has closed is ENDED whatever stands here (stock_state_at).';
COMMENT ON COLUMN stock.quantity IS 'How many vouchers there are to give out; changed by edits and rollovers only.';
COMMENT ON COLUMN stock.adjust_no IS 'The last adjustment (stock_adjustment) that quantity contains.';
COMMENT ON COLUMN stock.valid_until IS 'The last moment for every voucher of the stock; its money expires after it, whenever single vouchers ended.';
COMMENT ON COLUMN stock.valid_days IS 'A voucher ends with so many days from its claim on, that day being the first (voucher_end); none when null.';
COMMENT ON COLUMN stock.stacks_with IS 'Whose reductions may be on the payment already.';
COMMENT ON COLUMN stock.till_code IS 'ROTATING: only with the code that the phone shows anew each minute.';
COMMENT ON COLUMN stock.is_granted IS 'Handed out by the city to a list of people; nobody can claim it.';

CREATE TABLE pack (
    pack_no     integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    pack_id     text NOT NULL UNIQUE CHECK (pack_id ~ '^[A-Za-z0-9_-]{4,40}$'),
    round_no    smallint NOT NULL REFERENCES round,
    partner_no  smallint NOT NULL REFERENCES partner,
    group_no    smallint,
    is_granted  boolean NOT NULL DEFAULT false,
    FOREIGN KEY (round_no, group_no) REFERENCES claim_group
);
COMMENT ON TABLE pack IS 'Several vouchers that are claimed together, all or none. Counts as one claim. Its id is nobody else''s, stocks included.';

CREATE TABLE pack_item (
    pack_no   integer NOT NULL REFERENCES pack,
    stock_no  integer NOT NULL REFERENCES stock,
    quantity  smallint NOT NULL CHECK (quantity BETWEEN 1 AND 20),
    PRIMARY KEY (pack_no, stock_no)
);

-- ---------------------------------------------------------------- vouchers

CREATE FUNCTION number_hash(number text, owner integer) RETURNS integer
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT (hashtextextended(number, owner) & 524287)::integer $$;
COMMENT ON FUNCTION number_hash IS 'Nineteen bits: several numbers share one, so that an index keeps them as lists of a few bytes each. '
    'Whoever looks compares the number itself.';

-- voucher_id = round_no << 38 | partition << 28 | serial, so that a round is one range of numbers:
-- one partition of each table below, which can be detached when the round is long over.
-- No foreign key to stock: a check for each row would halve the drain; the audit checks it instead.
CREATE TABLE voucher (
    voucher_id      bigint NOT NULL,
    claimed_at      timestamptz NOT NULL,
    request_key     integer NOT NULL,
    person          uuid NOT NULL,
    stock_no        integer NOT NULL,
    bucket          smallint NOT NULL,
    out_request_no  text COLLATE "C" NOT NULL,
    pack_no         integer,
    PRIMARY KEY (voucher_id) WITH (fillfactor = 100) -- in this order they come, so pages are full from the start
) PARTITION BY RANGE (voucher_id);
-- Indexes beside a primary key start with another column than bucket: while a table is nearly empty the planner
-- takes any index whose first column it knows, and a plan that scans a whole bucket outlives the emptiness.
CREATE INDEX voucher_request ON voucher ((request_key & 524287), bucket);
COMMENT ON COLUMN voucher.request_key IS 'First 4 bytes of a hash of partner and out_request_no; indexed by nineteen bits of them (see number_hash).';
COMMENT ON COLUMN voucher.person IS 'Keyed token of the person, 128 bits. Nothing else about a person is stored.';
COMMENT ON COLUMN voucher.pack_no IS 'The pack it came in; null when it was claimed by itself.';

CREATE TABLE stock_issued (
    stock_no  integer NOT NULL REFERENCES stock,
    shard     smallint NOT NULL,
    issued    bigint NOT NULL CHECK (issued > 0),
    PRIMARY KEY (stock_no, shard)
);
COMMENT ON TABLE stock_issued IS 'Vouchers in the books, moved in the transaction that adds them; the audit counts after it.';

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
    PRIMARY KEY (voucher_id, bucket, attempt)
) PARTITION BY RANGE (voucher_id);
CREATE INDEX redemption_use ON redemption (number_hash(use_request_no, merchant_no), bucket);
CREATE INDEX redemption_order ON redemption (number_hash(order_no, merchant_no), bucket);
CREATE INDEX redemption_day ON redemption USING brin (booked_on) WITH (pages_per_range = 32, autosummarize = on);
COMMENT ON COLUMN redemption.order_no IS 'The shop''s payment; one city voucher a payment.';
COMMENT ON COLUMN redemption.attempt IS '1 for the first use; a voucher that a refund gave back may be used again.';
COMMENT ON COLUMN redemption.booked_on IS 'Business day (Asia/Shanghai) whose settlement pays it; never a day already closed.';

-- refund_fen is the cash the customer got back, subsidy_fen what the city takes back from the merchant:
-- PAYABLE -> ISSUED (the voucher lives again) or PAYABLE -> RETURNED (it does not).
CREATE TABLE refund (
    voucher_id         bigint NOT NULL,
    subsidy_fen        bigint NOT NULL CHECK (subsidy_fen >= 0),
    refund_fen         bigint NOT NULL CHECK (refund_fen >= 0),
    refunded_at        timestamptz NOT NULL,
    stock_no           integer NOT NULL,
    merchant_no        integer NOT NULL,
    booked_on          date NOT NULL,
    bucket             smallint NOT NULL,
    attempt            smallint NOT NULL,
    credit             account_kind NOT NULL CHECK (credit IN ('ISSUED', 'RETURNED')),
    refund_request_no  text COLLATE "C" NOT NULL,
    refund_no          smallint NOT NULL CHECK (refund_no > 0),
    PRIMARY KEY (voucher_id, bucket, attempt, refund_no),
    FOREIGN KEY (voucher_id, bucket, attempt) REFERENCES redemption,
    CHECK (subsidy_fen + refund_fen > 0),
    CONSTRAINT restored_at_once CHECK (credit = 'RETURNED' OR refund_no = 1)
) PARTITION BY RANGE (voucher_id);
CREATE INDEX refund_merchant ON refund (merchant_no, bucket, booked_on);
COMMENT ON COLUMN refund.refund_no IS '1, 2, ... of a redemption. What is given back in parts never gives the voucher back.';
COMMENT ON COLUMN refund.subsidy_fen IS 'What the city takes back of the subsidy; nothing in a step whose part of it is less than a fen.';

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
    FOREIGN KEY (voucher_id, bucket, attempt) REFERENCES redemption
) PARTITION BY RANGE (voucher_id);
COMMENT ON TABLE offline_use IS 'Redemptions that a till took without us and uploaded later: their redeemed_at is the till''s word.';

CREATE TABLE redeem_cap (
    campaign_no     smallint NOT NULL REFERENCES campaign,
    period          cap_period NOT NULL,
    is_per_partner  boolean NOT NULL,
    face_fen_max    bigint NOT NULL CHECK (face_fen_max BETWEEN 1 AND 1000000000000),
    PRIMARY KEY (campaign_no, period, is_per_partner)
);
COMMENT ON TABLE redeem_cap IS 'How much face one person may redeem in a calendar month (Asia/Shanghai) or in all, at one partner''s vouchers or at everybody''s.';

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


CREATE TABLE request_number (
    request_key  uuid NOT NULL,
    body_hash    bigint NOT NULL,
    voucher_id   bigint NOT NULL,
    bucket       smallint NOT NULL,
    PRIMARY KEY (bucket, request_key)
);
COMMENT ON TABLE request_number IS 'Numbers of tills whose own bucket is not that of the voucher, and numbers of refunds and cancels. '
    'A number lives in the bucket of its own hash: there, or, when the voucher lives there too, in the row that it made.';

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

SELECT make_append_only(t) FROM unnest(ARRAY['voucher', 'redemption', 'refund', 'hold', 'hold_end', 'offline_use', 'redeem_cap', 'transfer', 'day_close',
    'merchant_day', 'merchant_hold', 'merchant_hold_release', 'campaign', 'city',
    'claim_group', 'pack', 'pack_item', 'release_stage']::regclass[]) AS t;

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

-- Whoever keeps the catalogue in memory reads it again at once: a pause, or stock that returns, must not wait.
CREATE FUNCTION tell_of_stock() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NOTIFY hanquan_stock;
    RETURN NULL;
END $$;
CREATE TRIGGER tell_of_stock AFTER UPDATE ON stock FOR EACH STATEMENT EXECUTE FUNCTION tell_of_stock();

-- ---------------------------------------------------------------- functions to write

-- Advisory locks, all of them: 4817 a bucket, 4818 the drain of a shard (and, as a single number, the cases of
-- anti-fraud), 4819 the settlement of a campaign, 4820 the reconciliation of a campaign, 4821 loading a campaign, 4822 publishing
-- a round and changing what is published of it, 4823 the search for request numbers that clash,
-- 4824 moving a round into the archive (shared: reading the books with it), 4825 onboarding merchants.
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
    FOREACH v_table IN ARRAY ARRAY['voucher', 'redemption', 'refund', 'hold', 'hold_end', 'offline_use'] LOOP
        v_part := v_table || '_r' || p_round_no;
        -- They only grow, and fast: autovacuum looks at them when they have doubled (ADR 23).
        EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%s) TO (%s) '
                       'WITH (autovacuum_vacuum_insert_scale_factor = 1, autovacuum_analyze_scale_factor = 1)',
                       v_part, v_table, p_round_no::bigint << 38, (p_round_no::bigint + 1) << 38);
        EXECUTE format('CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION forbid_change()', v_part);
    END LOOP;
END $$;

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

-- Batches judge first and write afterwards, in statements of their own: a SELECT into arrays, item by item, then plain
-- INSERTs from them. What is not there to be written costs nothing, and on several nodes (docs/citus.md) each statement
-- stays on the node of its bucket, where one that writes in a WITH would ask them all.

CREATE FUNCTION expired_stocks(p_bucket smallint, p_stock_no integer[]) RETURNS integer[]
    LANGUAGE sql STABLE AS $$
    SELECT ARRAY(SELECT s.stock_no FROM (SELECT DISTINCT unnest(p_stock_no)) AS s(stock_no) WHERE is_stock_expired(p_bucket, s.stock_no)) $$;
COMMENT ON FUNCTION expired_stocks IS 'Those of the stocks whose money went back to the budget: asked once a batch, not once an item.';

CREATE FUNCTION below_id(p_at timestamptz, p_voucher_id bigint) RETURNS bigint
    LANGUAGE sql STABLE AS $$
    SELECT greatest((SELECT max(d.round_no) FROM round d WHERE d.opens_at <= p_at + interval '1 day')::bigint, p_voucher_id >> 38) + 1 << 38 $$;
COMMENT ON FUNCTION below_id IS 'No voucher from this number on can have been used at p_at: its round opens more than a day later, and clocks agree better.';

-- Redeems vouchers of one bucket, or holds them (p_expires_at not null): each item judged on its own, all committed
-- together. No two items of a call have a voucher, a number, a payment or a person in common.
-- A connection keeps the plan it made when the tables were still empty; SET makes that plan one by keys.
-- The caller has checked the offer's rules (they never change); here only what another request may have changed is
-- decided. p_is_use_here, p_is_order_here: this bucket is the number's own, so it is looked at here; otherwise it is
-- registered in its own. p_taken_at, p_taken_on: moment and business day of the use; p_is_offline: the till's word, not ours.
-- Array position = item number in the answer, from 1. An array that is empty reads as nulls, which say no.
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
    -- Where these vouchers' rows are, and where any row with a number may be: known before a statement begins, so that it
    -- touches no other round's tables.
    v_first    bigint := (SELECT min(i) FROM unnest(p_voucher_id) AS i);
    v_last     bigint := (SELECT max(i) FROM unnest(p_voucher_id) AS i);
    v_below    bigint := below_id(p_at, v_last);
    v_holds    boolean; -- asked once: while nobody holds anything, nobody looks
    v_numbers  boolean;
    v_caps     boolean;
    v_expired  integer[];
    v_outcome  till_outcome[]; -- these five by item
    v_attempt  smallint[];
    v_at       timestamptz[];
    v_until    timestamptz[];
    v_told     integer[]; -- the stock of what partners are told of
BEGIN
    PERFORM lock_bucket(p_bucket);
    v_open := first_open_day(p_bucket, '-infinity');
    v_holds := EXISTS (SELECT FROM hold WHERE bucket = p_bucket);
    v_numbers := EXISTS (SELECT FROM request_number WHERE bucket = p_bucket);
    v_caps := EXISTS (SELECT FROM redeem_cap);
    v_expired := expired_stocks(p_bucket, p_stock_no);

    SELECT array_agg(j.outcome ORDER BY j.item), array_agg(j.attempt ORDER BY j.item),
           array_agg(CASE WHEN j.outcome <> 'REPLAYED' THEN j.taken_at WHEN j.is_hold THEN j.held_at ELSE j.mine_at END ORDER BY j.item),
           array_agg(CASE WHEN j.outcome = 'REPLAYED' AND j.is_hold THEN j.held_until ELSE j.expires_at END ORDER BY j.item),
           array_agg(CASE WHEN j.outcome = 'DONE' AND NOT j.is_hold THEN j.stock_no END ORDER BY j.item)
      INTO v_outcome, v_attempt, v_at, v_until, v_told
      FROM (
        SELECT a.item, a.stock_no, a.taken_at, a.expires_at, a.expires_at IS NOT NULL AS is_hold, last.redeemed_at AS mine_at, held.held_at, held.held_until,
               (greatest(last.attempt, held.attempt, 0::smallint) + 1)::smallint AS attempt,
               (CASE
                WHEN CASE WHEN a.is_use_here IS NOT TRUE THEN false
                          WHEN a.expires_at IS NOT NULL THEN is_hold_taken(p_bucket, p_oldest, a.merchant_no, a.request_no, a.voucher_id)
                          ELSE EXISTS (SELECT FROM redemption r
                                WHERE number_hash(r.use_request_no, r.merchant_no) = number_hash(a.request_no, a.merchant_no) AND r.bucket = p_bucket
                                  AND r.voucher_id >= p_oldest AND r.voucher_id < v_below AND r.merchant_no = a.merchant_no AND r.use_request_no = a.request_no
                                  AND r.voucher_id <> a.voucher_id) END
                  OR v_numbers AND a.is_use_here AND EXISTS (SELECT FROM request_number n
                        WHERE n.bucket = p_bucket AND n.request_key = a.request_key AND (n.voucher_id, n.body_hash) <> (a.voucher_id, a.body_hash))
                    THEN 'MISMATCH'
                WHEN a.expires_at IS NULL AND last.is_mine THEN CASE WHEN last.is_same THEN 'REPLAYED' ELSE 'MISMATCH' END
                WHEN a.expires_at IS NOT NULL AND held.is_mine THEN CASE WHEN held.is_same THEN 'REPLAYED' ELSE 'MISMATCH' END
                WHEN a.is_order_here AND (EXISTS (SELECT FROM redemption r
                        WHERE number_hash(r.order_no, r.merchant_no) = number_hash(a.order_no, a.merchant_no) AND r.bucket = p_bucket
                          AND r.voucher_id >= p_oldest AND r.voucher_id < v_below AND r.merchant_no = a.merchant_no AND r.order_no = a.order_no
                          AND r.voucher_id <> a.voucher_id)
                    OR v_holds AND is_order_taken(p_bucket, p_oldest, a.merchant_no, a.order_no, a.voucher_id)
                    OR v_numbers AND EXISTS (SELECT FROM request_number n
                        WHERE n.bucket = p_bucket AND n.request_key = a.order_key AND n.voucher_id <> a.voucher_id))
                    THEN 'ORDER_TAKEN'
                WHEN v.person IS NULL THEN 'CONFIRMING'
                WHEN last.attempt IS NOT NULL AND last.credit IS NULL THEN 'USED'
                WHEN last.credit = 'RETURNED' THEN 'RETURNED'
                WHEN held.is_live AND held.attempt > coalesce(last.attempt, 0) THEN 'HELD'
                WHEN a.stock_no = ANY (v_expired) THEN 'EXPIRED'
                WHEN v_caps THEN coalesce(cap_broken(p_bucket, p_at, a.taken_on, v.person, a.stock_no)::text, 'DONE')
                ELSE 'DONE' END)::till_outcome AS outcome
          FROM unnest(p_voucher_id, p_stock_no, p_merchant_no, p_bill_fen, p_request_no, p_order_no, p_expires_at, p_request_key, p_order_key,
                      p_body_hash, p_is_use_here, p_is_order_here, p_taken_at, p_taken_on) WITH ORDINALITY
            AS a(voucher_id, stock_no, merchant_no, bill_fen, request_no, order_no, expires_at, request_key, order_key,
                 body_hash, is_use_here, is_order_here, taken_at, taken_on, item)
          LEFT JOIN voucher v ON v.bucket = p_bucket AND v.voucher_id = a.voucher_id AND v.voucher_id BETWEEN v_first AND v_last
          LEFT JOIN LATERAL (SELECT r.attempt, r.redeemed_at, r.merchant_no = a.merchant_no AND r.use_request_no = a.request_no AS is_mine,
                    (r.order_no, r.bill_fen) = (a.order_no, a.bill_fen) AS is_same,
                    (SELECT f.credit FROM refund f WHERE f.bucket = p_bucket AND f.voucher_id = r.voucher_id AND f.attempt = r.attempt
                        AND f.voucher_id BETWEEN v_first AND v_last
                      LIMIT 1) AS credit
                FROM redemption r WHERE r.bucket = p_bucket AND r.voucher_id = a.voucher_id AND r.voucher_id BETWEEN v_first AND v_last
                ORDER BY r.merchant_no = a.merchant_no AND r.use_request_no = a.request_no AND a.expires_at IS NULL DESC, r.attempt DESC LIMIT 1) last ON true
          LEFT JOIN LATERAL (SELECT h.attempt, h.held_at, h.expires_at AS held_until,
                    h.merchant_no = a.merchant_no AND h.hold_request_no = a.request_no AS is_mine,
                    (h.order_no, h.bill_fen) = (a.order_no, a.bill_fen) AS is_same,
                    h.expires_at > p_at AND NOT EXISTS (SELECT FROM hold_end e
                        WHERE e.bucket = p_bucket AND e.voucher_id = h.voucher_id AND e.attempt = h.attempt
                          AND e.voucher_id BETWEEN v_first AND v_last) AS is_live
                FROM hold h WHERE v_holds AND h.bucket = p_bucket AND h.voucher_id = a.voucher_id AND h.voucher_id BETWEEN v_first AND v_last
                ORDER BY h.merchant_no = a.merchant_no AND h.hold_request_no = a.request_no AND a.expires_at IS NOT NULL DESC,
                         h.attempt DESC LIMIT 1) held ON true
      ) j;

    INSERT INTO redemption (voucher_id, subsidy_fen, bill_fen, redeemed_at, stock_no, merchant_no, terminal_no,
                            booked_on, bucket, attempt, use_request_no, order_no)
    SELECT j.voucher_id, j.subsidy_fen, j.bill_fen, j.taken_at, j.stock_no, j.merchant_no, j.terminal_no,
           greatest(j.taken_on, v_open), p_bucket, j.attempt, j.request_no, j.order_no
      FROM unnest(p_voucher_id, p_subsidy_fen, p_bill_fen, p_taken_at, p_stock_no, p_merchant_no, p_terminal_no, p_taken_on,
                  v_attempt, p_request_no, p_order_no, p_expires_at, v_outcome)
        AS j(voucher_id, subsidy_fen, bill_fen, taken_at, stock_no, merchant_no, terminal_no, taken_on,
             attempt, request_no, order_no, expires_at, outcome)
     WHERE j.outcome = 'DONE' AND j.expires_at IS NULL ORDER BY j.voucher_id;
    IF true = ANY (p_is_offline) THEN
        INSERT INTO offline_use (voucher_id, uploaded_at, bucket, attempt)
        SELECT j.voucher_id, p_at, p_bucket, j.attempt
          FROM unnest(p_voucher_id, v_attempt, v_outcome, p_is_offline) AS j(voucher_id, attempt, outcome, is_offline)
         WHERE j.outcome = 'DONE' AND j.is_offline;
    END IF;
    IF array_remove(p_expires_at, NULL) <> '{}' THEN
        INSERT INTO hold (voucher_id, subsidy_fen, bill_fen, held_at, expires_at, stock_no, merchant_no, terminal_no,
                          bucket, attempt, hold_request_no, order_no)
        SELECT j.voucher_id, j.subsidy_fen, j.bill_fen, j.taken_at, j.expires_at, j.stock_no, j.merchant_no, j.terminal_no,
               p_bucket, j.attempt, j.request_no, j.order_no
          FROM unnest(p_voucher_id, p_subsidy_fen, p_bill_fen, p_taken_at, p_expires_at, p_stock_no, p_merchant_no, p_terminal_no,
                      v_attempt, p_request_no, p_order_no, v_outcome)
            AS j(voucher_id, subsidy_fen, bill_fen, taken_at, expires_at, stock_no, merchant_no, terminal_no,
                 attempt, request_no, order_no, outcome)
         WHERE j.outcome = 'DONE' AND j.expires_at IS NOT NULL ORDER BY j.voucher_id;
    END IF;
    IF v_caps THEN
        INSERT INTO person_use (voucher_id, person_hash, used_on, bucket, attempt)
        SELECT j.voucher_id, person_hash(v.person), j.taken_on, p_bucket, j.attempt
          FROM unnest(p_voucher_id, p_stock_no, p_taken_on, v_attempt, v_outcome) AS j(voucher_id, stock_no, taken_on, attempt, outcome)
          JOIN voucher v ON v.bucket = p_bucket AND v.voucher_id = j.voucher_id AND v.voucher_id BETWEEN v_first AND v_last
          JOIN stock k ON k.stock_no = j.stock_no JOIN round d ON d.round_no = k.round_no
         WHERE j.outcome = 'DONE' AND EXISTS (SELECT FROM redeem_cap c WHERE c.campaign_no = d.campaign_no);
    END IF;
    IF EXISTS (SELECT FROM callback_subscription WHERE is_active) THEN
        PERFORM tell_partners(p_bucket, p_at, 'USED', p_voucher_id, v_attempt, NULL, v_told);
    END IF;
    RETURN QUERY SELECT j.item, j.outcome, j.booked_at, j.expires_at
      FROM unnest(v_outcome, v_at, v_until) WITH ORDINALITY AS j(outcome, booked_at, expires_at, item);
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
    v_day      date;
    v_outcome  till_outcome[]; -- these six by item; the attempt and the outcome before are null where there is none
    v_attempt  smallint[];
    v_ended    hold_outcome[];
    v_at       timestamptz[];
    v_over_at  timestamptz[];
    v_told     integer[]; -- the stock of what partners are told of
BEGIN
    PERFORM lock_bucket(p_bucket);
    v_day := first_open_day(p_bucket, p_day);

    SELECT array_agg(j.outcome ORDER BY j.item), array_agg(j.attempt ORDER BY j.item), array_agg(j.ended ORDER BY j.item),
           array_agg(CASE j.outcome WHEN 'DONE' THEN greatest(p_at, j.held_at) -- this worker's clock may lag behind that of the one who held
                                    WHEN 'RUN_OUT' THEN j.expires_at ELSE j.ended_then END ORDER BY j.item),
           array_agg(greatest(p_at, j.expires_at) ORDER BY j.item),
           array_agg(CASE WHEN j.outcome = 'DONE' AND j.is_confirm THEN j.stock_no END ORDER BY j.item)
      INTO v_outcome, v_attempt, v_ended, v_at, v_over_at, v_told
      FROM (
        SELECT a.item, a.use_request_no IS NOT NULL AS is_confirm, h.stock_no, h.attempt, h.held_at, h.expires_at, e.outcome AS ended, e.ended_at AS ended_then,
               (CASE
                WHEN h.voucher_id IS NULL THEN 'NOT_FOUND'
                WHEN a.use_request_no IS NOT NULL AND (
                    a.is_use_here AND is_use_taken(p_bucket, p_oldest, a.merchant_no, a.use_request_no, a.voucher_id)
                 OR a.is_use_here AND EXISTS (SELECT FROM request_number n WHERE n.bucket = p_bucket AND n.request_key = a.request_key
                        AND (n.voucher_id, n.body_hash) <> (a.voucher_id, a.body_hash))
                 OR EXISTS (SELECT FROM redemption r WHERE r.bucket = p_bucket AND r.voucher_id = a.voucher_id
                        AND r.merchant_no = a.merchant_no AND r.use_request_no = a.use_request_no AND r.attempt IS DISTINCT FROM h.attempt))
                    THEN 'MISMATCH'
                WHEN e.outcome = 'CONFIRMED' AND e.request_no = a.use_request_no THEN 'REPLAYED'
                WHEN e.outcome = 'CANCELLED' AND e.ended_at >= h.expires_at THEN 'RUN_OUT'
                WHEN e.outcome = 'CANCELLED' AND e.request_no = a.cancel_request_no THEN 'REPLAYED'
                WHEN e.outcome IS NOT NULL THEN e.outcome::text
                WHEN h.expires_at <= p_at OR is_stock_expired(p_bucket, h.stock_no)
                  OR EXISTS (SELECT FROM hold n WHERE n.bucket = p_bucket AND n.voucher_id = h.voucher_id AND n.attempt > h.attempt)
                  OR EXISTS (SELECT FROM redemption n WHERE n.bucket = p_bucket AND n.voucher_id = h.voucher_id AND n.attempt > h.attempt)
                    THEN 'RUN_OUT'
                ELSE 'DONE' END)::till_outcome AS outcome
          FROM unnest(p_voucher_id, p_merchant_no, p_hold_request_no, p_use_request_no, p_cancel_request_no,
                      p_request_key, p_body_hash, p_is_use_here) WITH ORDINALITY
            AS a(voucher_id, merchant_no, hold_request_no, use_request_no, cancel_request_no, request_key, body_hash, is_use_here, item)
          LEFT JOIN LATERAL (SELECT i.* FROM hold i WHERE i.bucket = p_bucket AND i.voucher_id = a.voucher_id
                AND i.merchant_no = a.merchant_no AND i.hold_request_no = a.hold_request_no) h ON true
          LEFT JOIN hold_end e ON e.bucket = p_bucket AND e.voucher_id = h.voucher_id AND e.attempt = h.attempt
      ) j;

    INSERT INTO redemption (voucher_id, subsidy_fen, bill_fen, redeemed_at, stock_no, merchant_no, terminal_no,
                            booked_on, bucket, attempt, use_request_no, order_no)
    SELECT h.voucher_id, h.subsidy_fen, h.bill_fen, j.done_at, h.stock_no, h.merchant_no, h.terminal_no,
           greatest(v_day, (j.done_at AT TIME ZONE 'Asia/Shanghai')::date), h.bucket, h.attempt, j.use_request_no, h.order_no
      FROM unnest(p_voucher_id, v_attempt, v_outcome, v_at, p_use_request_no) AS j(voucher_id, attempt, outcome, done_at, use_request_no)
      JOIN hold h ON h.bucket = p_bucket AND h.voucher_id = j.voucher_id AND h.attempt = j.attempt
     WHERE j.outcome = 'DONE' AND j.use_request_no IS NOT NULL;
    -- A cancel of what ran out is written, too: no clock that lags may confirm it afterwards.
    INSERT INTO hold_end (voucher_id, ended_at, bucket, attempt, outcome, request_no)
    SELECT j.voucher_id, CASE j.outcome WHEN 'DONE' THEN j.done_at ELSE j.over_at END, p_bucket, j.attempt,
           CASE WHEN j.use_request_no IS NULL THEN 'CANCELLED' ELSE 'CONFIRMED' END::hold_outcome,
           coalesce(j.use_request_no, j.cancel_request_no)
      FROM unnest(p_voucher_id, v_attempt, v_outcome, v_ended, v_at, v_over_at, p_use_request_no, p_cancel_request_no)
        AS j(voucher_id, attempt, outcome, ended, done_at, over_at, use_request_no, cancel_request_no)
     WHERE j.outcome = 'DONE' OR (j.outcome = 'RUN_OUT' AND j.ended IS NULL AND j.cancel_request_no IS NOT NULL);
    IF EXISTS (SELECT FROM callback_subscription WHERE is_active) THEN
        PERFORM tell_partners(p_bucket, p_at, 'USED', p_voucher_id, v_attempt, NULL, v_told);
    END IF;
    RETURN QUERY SELECT j.item, j.outcome, j.ended_at FROM unnest(v_outcome, v_at) WITH ORDINALITY AS j(outcome, ended_at, item);
END $$;

-- Refunds redemptions of one bucket, whole or in part. Each names the redemption by the till's own number, and how many
-- refunds the caller counted on (p_refunds): CHANGED when there are more.
-- No two items of a call have a redemption or a number in common.
CREATE FUNCTION refund_batch(p_bucket smallint, p_at timestamptz, p_day date,
        p_voucher_id bigint[], p_merchant_no integer[], p_use_request_no text[], p_refund_request_no text[], p_refund_fen bigint[],
        p_subsidy_fen bigint[], p_is_restored boolean[], p_refunds smallint[])
    RETURNS TABLE (item bigint, outcome till_outcome, credit account_kind, subsidy_fen bigint, refunded_at timestamptz)
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    v_day         date;
    v_first_open  date;
    v_outcome     till_outcome[]; -- these six by item
    v_attempt     smallint[];
    v_credit      account_kind[];
    v_fen         bigint[];
    v_at          timestamptz[];
    v_told        integer[]; -- the stock of what partners are told of
BEGIN
    PERFORM lock_bucket(p_bucket);
    v_day := first_open_day(p_bucket, p_day);
    v_first_open := coalesce((SELECT max(c.day) + 1 FROM day_close c WHERE c.bucket = p_bucket), '-infinity');

    SELECT array_agg(j.outcome ORDER BY j.item), array_agg(j.attempt ORDER BY j.item), array_agg(j.goes_to ORDER BY j.item),
           array_agg(j.back_fen ORDER BY j.item), array_agg(j.done_at ORDER BY j.item),
           array_agg(CASE WHEN j.outcome = 'DONE' THEN j.stock_no END ORDER BY j.item)
      INTO v_outcome, v_attempt, v_credit, v_fen, v_at, v_told
      FROM (
        SELECT s.item, s.stock_no, s.attempt, coalesce(s.mine_fen, s.subsidy_fen) AS back_fen, coalesce(s.mine_at, p_at) AS done_at,
               coalesce(s.mine_credit, CASE WHEN s.is_restored AND NOT is_stock_expired(p_bucket, s.stock_no)
                                            THEN 'ISSUED' ELSE 'RETURNED' END::account_kind) AS goes_to,
               (CASE
                WHEN s.attempt IS NULL THEN 'NOT_FOUND'
                WHEN s.mine_at IS NOT NULL THEN 'REPLAYED'
                WHEN s.refunds_now <> s.refunds THEN 'CHANGED'
                WHEN s.earlier_fen + s.subsidy_fen > s.whole_fen THEN 'RETURNED' -- the caller knows; here for good measure
                WHEN s.booked_on < v_day AND refund_room_fen(p_bucket, s.merchant_no, v_first_open) < s.asked_fen THEN 'OVER_LIMIT'
                ELSE 'DONE' END)::till_outcome AS outcome
          FROM (
            SELECT a.item, a.subsidy_fen, a.is_restored, a.refunds, a.merchant_no, r.attempt, r.stock_no, r.booked_on, r.subsidy_fen AS whole_fen,
                   f.credit AS mine_credit, f.subsidy_fen AS mine_fen, f.refunded_at AS mine_at, earlier.refunds_now, earlier.earlier_fen,
                   sum(a.subsidy_fen) FILTER (WHERE r.booked_on < v_day AND f.attempt IS NULL) OVER (PARTITION BY a.merchant_no ORDER BY a.item) AS asked_fen
              FROM unnest(p_voucher_id, p_merchant_no, p_use_request_no, p_refund_request_no, p_subsidy_fen, p_is_restored, p_refunds)
                WITH ORDINALITY AS a(voucher_id, merchant_no, use_request_no, refund_request_no, subsidy_fen, is_restored, refunds, item)
              LEFT JOIN LATERAL (SELECT u.voucher_id, u.attempt, u.stock_no, u.booked_on, u.subsidy_fen FROM redemption u
                    WHERE u.bucket = p_bucket AND u.voucher_id = a.voucher_id
                      AND u.merchant_no = a.merchant_no AND u.use_request_no = a.use_request_no) r ON true
              LEFT JOIN LATERAL (SELECT count(*) AS refunds_now, coalesce(sum(n.subsidy_fen), 0) AS earlier_fen FROM refund n
                    WHERE n.bucket = p_bucket AND n.voucher_id = r.voucher_id AND n.attempt = r.attempt) earlier ON true
              LEFT JOIN refund f ON f.bucket = p_bucket AND f.voucher_id = r.voucher_id AND f.attempt = r.attempt AND f.refund_request_no = a.refund_request_no
          ) s
      ) j;

    INSERT INTO refund (voucher_id, subsidy_fen, refund_fen, refunded_at, stock_no, merchant_no, booked_on,
                        bucket, attempt, credit, refund_request_no, refund_no)
    SELECT r.voucher_id, j.subsidy_fen, j.refund_fen, p_at, r.stock_no, r.merchant_no, v_day,
           r.bucket, r.attempt, j.credit, j.refund_request_no, j.refunds + 1
      FROM unnest(p_voucher_id, v_attempt, v_outcome, v_credit, p_subsidy_fen, p_refund_fen, p_refund_request_no, p_refunds)
        AS j(voucher_id, attempt, outcome, credit, subsidy_fen, refund_fen, refund_request_no, refunds)
      JOIN redemption r ON r.bucket = p_bucket AND r.voucher_id = j.voucher_id AND r.attempt = j.attempt
     WHERE j.outcome = 'DONE' ORDER BY r.voucher_id;
    IF EXISTS (SELECT FROM callback_subscription WHERE is_active) THEN
        PERFORM tell_partners(p_bucket, p_at, 'REFUNDED', p_voucher_id, v_attempt, p_refunds, v_told);
    END IF;
    RETURN QUERY SELECT j.item, j.outcome, j.credit, j.subsidy_fen, j.refunded_at
      FROM unnest(v_outcome, v_credit, v_fen, v_at) WITH ORDINALITY AS j(outcome, credit, subsidy_fen, refunded_at, item);
END $$;

-- How much more of the sales of earlier days may be refunded at a merchant before it owes the city more than agreed.
-- What it is owed for closed days is no room, nor does what one campaign owes it cover what it owes another: a batch may
-- be paying that out right now. Nor is what an earlier day that is still open will bring: it may be closed and paid
-- before the refund is. Refunds on the day of the sale do not count: each takes back its own sale and no more.
CREATE FUNCTION refund_room_fen(p_bucket smallint, p_merchant_no integer, p_first_open date) RETURNS bigint
    LANGUAGE sql STABLE AS $$
    SELECT ((SELECT m.refund_debt_fen_max FROM merchant m WHERE m.merchant_no = p_merchant_no)
         + coalesce((SELECT sum(least(0, a.credits_fen - a.debits_fen)) FROM account a
                      WHERE a.bucket = p_bucket AND a.merchant_no = p_merchant_no AND a.kind = 'PAYABLE'), 0)
         - coalesce((SELECT sum(f.subsidy_fen) FROM refund f
                       JOIN redemption r ON r.bucket = f.bucket AND r.voucher_id = f.voucher_id AND r.attempt = f.attempt
                      WHERE f.bucket = p_bucket AND f.merchant_no = p_merchant_no AND f.booked_on >= p_first_open
                        AND r.booked_on < f.booked_on), 0))::bigint
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
    INSERT INTO callback_expiry (bucket, stock_no, expired_at, unfolded_to)
    SELECT p_bucket, p_stock_no, p_at, v_stock.round_no::bigint << 38 FROM callback_subscription c
     WHERE c.partner_no = v_stock.partner_no AND c.is_active AND 'EXPIRED' = ANY (c.kinds);
    RETURN v_unused;
END $$;

-- Tells the planner how many rows there are now. A round fills its tables in minutes, and nothing else ever
-- looks at partitioned tables as a whole; whoever reads everything (audit, reconciliation) calls this first.
CREATE FUNCTION refresh_statistics() RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    ANALYZE voucher, redemption, refund, request_number, transfer, account, merchant_day, merchant, stock;
END $$;

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

-- ---------------------------------------------------------------- anti-fraud

-- What a detector saw. The reason says what, how much, over which threshold, in which window, on what
-- evidence, under which rules (by hash), and in words that a citizen can read.
CREATE TABLE flag (
    flag_id       bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    subject_kind  text NOT NULL CHECK (subject_kind IN ('person', 'device', 'merchant')),
    subject       text COLLATE "C" NOT NULL CHECK (length(subject) BETWEEN 1 AND 36),
    detector      text NOT NULL,
    family        text NOT NULL CHECK (family IN ('identity', 'tempo', 'network', 'merchant', 'graph', 'refund')),
    points        smallint NOT NULL CHECK (points BETWEEN 1 AND 40),
    reason        jsonb NOT NULL,
    seen_from     timestamptz NOT NULL,
    opened_at     timestamptz NOT NULL,
    closed_at     timestamptz,
    closed_by     text,
    outcome       text CHECK (outcome IN ('UPHELD', 'CLEARED')),
    note          text,
    CHECK ((closed_at IS NULL) = (closed_by IS NULL) AND (closed_at IS NULL) = (outcome IS NULL))
);
CREATE UNIQUE INDEX flag_open ON flag (subject_kind, subject, detector) WHERE closed_at IS NULL;
CREATE INDEX flag_subject ON flag (subject_kind, subject, detector, closed_at);
COMMENT ON COLUMN flag.subject IS 'person: token (uuid); device: digest of the device token, 16 hex digits; merchant: merchant_no.';
COMMENT ON COLUMN flag.seen_from IS 'Time of the oldest evidence. A case that was closed later than this is not opened again by it.';

-- People whose claims are refused until a day at most 30 days away. The gate's block list in Valkey is
-- copied from here and can be rebuilt from here.
CREATE TABLE person_block (
    block_id    bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    person      uuid NOT NULL,
    points      smallint NOT NULL CHECK (points BETWEEN 90 AND 100),
    reason      jsonb NOT NULL,
    seen_from   timestamptz NOT NULL,
    placed_at   timestamptz NOT NULL,
    expires_at  timestamptz NOT NULL CHECK (expires_at > placed_at AND expires_at <= placed_at + interval '30 days'),
    lifted_at   timestamptz,
    lifted_by   text,
    note        text,
    CHECK ((lifted_at IS NULL) = (lifted_by IS NULL))
);
CREATE INDEX person_block_person ON person_block (person);
COMMENT ON COLUMN person_block.reason IS 'One reason a family of evidence, each as in flag.reason.';

CREATE TABLE signal_position (
    stream       text PRIMARY KEY,
    entry_ms     bigint NOT NULL,
    entry_seq    bigint NOT NULL
);
COMMENT ON TABLE signal_position IS 'Last stream entry whose flags are in the table; moved in the same transaction, forwards only.';

GRANT SELECT ON flag, person_block, signal_position TO hanquan_auditor;
GRANT SELECT ON flag, person_block TO hanquan_finance, hanquan_operator;
GRANT SELECT, INSERT ON flag, person_block TO hanquan_antifraud;
GRANT SELECT, INSERT, UPDATE ON signal_position TO hanquan_antifraud;
GRANT UPDATE (closed_at, closed_by, outcome, note) ON flag TO hanquan_finance;
GRANT UPDATE (lifted_at, lifted_by, note) ON person_block TO hanquan_finance;

-- ---------------------------------------------------------------- callbacks to partners

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
    part          smallint NOT NULL DEFAULT 0,
    PRIMARY KEY (bucket, voucher_id, attempt, kind, part),
    CONSTRAINT one_state CHECK (num_nonnulls(next_at, delivered_at, died_at) = 1)
);
CREATE INDEX callback_event_due ON callback_event (partner_no, bucket, next_at) WHERE next_at IS NOT NULL;
CREATE INDEX callback_event_dead ON callback_event (partner_no, died_at) WHERE died_at IS NOT NULL;
COMMENT ON COLUMN callback_event.part IS 'Which further refund of the use it is about: 0 for the first, and for everything else.';
COMMENT ON COLUMN callback_event.attempt IS 'Which use of the voucher it is about, 0 for none: attempt and kind are the order of a voucher''s events.';

-- Puts what happened into the outbox, for each partner that wants to hear of it. p_stock_no: null where there is nothing to tell.
CREATE FUNCTION tell_partners(p_bucket smallint, p_at timestamptz, p_kind callback_kind,
        p_voucher_id bigint[], p_attempt smallint[], p_part smallint[], p_stock_no integer[]) RETURNS void
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    v_voucher_id  bigint[];
    v_attempt     smallint[];
    v_part        smallint[];
    v_partner_no  smallint[];
BEGIN
    SELECT array_agg(j.voucher_id), array_agg(j.attempt), array_agg(j.part), array_agg(c.partner_no)
      INTO v_voucher_id, v_attempt, v_part, v_partner_no
      FROM unnest(p_voucher_id, p_attempt, p_part, p_stock_no) AS j(voucher_id, attempt, part, stock_no)
      JOIN stock k ON k.stock_no = j.stock_no JOIN callback_subscription c ON c.partner_no = k.partner_no
     WHERE c.is_active AND p_kind = ANY (c.kinds);
    INSERT INTO callback_event (bucket, voucher_id, attempt, part, kind, partner_no, happened_at, next_at)
    SELECT p_bucket, j.voucher_id, j.attempt, coalesce(j.part, 0::smallint), p_kind, j.partner_no, p_at, p_at
      FROM unnest(v_voucher_id, v_attempt, v_part, v_partner_no) AS j(voucher_id, attempt, part, partner_no);
END $$;

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

-- ---------------------------------------------------------------- life of a stock

CREATE TABLE operator (
    operator_no  integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    operator_id  text NOT NULL UNIQUE CHECK (operator_id ~ '^[A-Za-z0-9_-]{2,32}$'),
    name         staff_name NOT NULL
);
CREATE UNIQUE INDEX operator_name ON operator (lower(name));
COMMENT ON TABLE operator IS 'People who may sign requests to the operator service. A name is one person''s, so that nobody is two.';

CREATE TABLE stock_move (
    move_no     bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    stock_no    integer NOT NULL REFERENCES stock,
    verb        stock_verb NOT NULL,
    from_state  stock_state NOT NULL,
    to_state    stock_state NOT NULL,
    moved_by    staff_name NOT NULL,
    why         text NOT NULL CHECK (length(why) <= 500),
    moved_at    timestamptz NOT NULL,
    CONSTRAINT says_why CHECK (verb NOT IN ('REJECT', 'END') OR why <> '')
);
CREATE INDEX stock_move_stock ON stock_move (stock_no, move_no);

CREATE TABLE stock_edit (
    edit_no           bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    stock_no          integer NOT NULL REFERENCES stock,
    current_quantity  integer NOT NULL CHECK (current_quantity >= 0),
    target_quantity   integer NOT NULL CHECK (target_quantity >= 0),
    state             edit_state NOT NULL,
    asked_by          staff_name NOT NULL,
    why               text NOT NULL CHECK (length(why) BETWEEN 1 AND 500),
    asked_at          timestamptz NOT NULL,
    done_at           timestamptz,
    CHECK (current_quantity <> target_quantity),
    CHECK ((state = 'PENDING') = (done_at IS NULL))
);
CREATE UNIQUE INDEX stock_edit_pending ON stock_edit (stock_no) WHERE state = 'PENDING';
CREATE INDEX stock_edit_stock ON stock_edit (stock_no, edit_no);
COMMENT ON TABLE stock_edit IS 'Quantity up or down. PENDING: units are being taken back from the shards; REFUSED: too many were sold meanwhile.';

-- What each shard gained or lost by an edit. Numbers of a stock rise by one; a shard applies each once, in order
-- (issuer/lua/adjust.lua), so a crash anywhere is mended by asking again.
CREATE TABLE stock_adjustment (
    stock_no   integer NOT NULL REFERENCES stock,
    adjust_no  bigint NOT NULL CHECK (adjust_no > 0),
    edit_no    bigint NOT NULL REFERENCES stock_edit,
    shard      smallint NOT NULL CHECK (shard >= 0),
    delta      bigint NOT NULL CHECK (delta <> 0),
    applied    bigint CHECK (applied BETWEEN least(delta, 0) AND greatest(delta, 0)),
    PRIMARY KEY (stock_no, adjust_no)
);
CREATE INDEX stock_adjustment_edit ON stock_adjustment (edit_no);
COMMENT ON COLUMN stock_adjustment.applied IS 'What the shard could really give or take; null until it has answered.';

CREATE TABLE rollover (
    rollover_no    integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    from_round_no  smallint NOT NULL REFERENCES round,
    to_round_no    smallint NOT NULL REFERENCES round,
    carried_fen    bigint NOT NULL CHECK (carried_fen >= 0),
    returned_fen   bigint NOT NULL CHECK (returned_fen >= 0),
    rolled_by      staff_name NOT NULL,
    why            text NOT NULL CHECK (length(why) <= 500),
    rolled_at      timestamptz NOT NULL,
    CHECK (from_round_no <> to_round_no)
);
COMMENT ON COLUMN rollover.carried_fen IS 'Budget of vouchers nobody claimed, moved from one round to the other.';
COMMENT ON COLUMN rollover.returned_fen IS 'Money of expired vouchers that finance had returned to BUDGET, added to the other round''s budget.';

CREATE TABLE rollover_stock (
    from_stock_no  integer PRIMARY KEY REFERENCES stock,
    rollover_no    integer NOT NULL REFERENCES rollover,
    to_stock_no    integer REFERENCES stock,
    units          integer NOT NULL CHECK (units >= 0)
);
COMMENT ON TABLE rollover_stock IS 'Vouchers of a stock that nobody claimed; once a stock. Without a to_stock_no the next round has no such stock, '
    'and they are gone; their money stays in BUDGET.';

CREATE TABLE rollover_return (
    campaign_no  smallint NOT NULL,
    reference    text NOT NULL,
    rollover_no  integer NOT NULL REFERENCES rollover,
    PRIMARY KEY (campaign_no, reference),
    FOREIGN KEY (campaign_no, reference) REFERENCES fund_return
);
COMMENT ON TABLE rollover_return IS 'Returns of finance that raised a round''s budget; each raises one.';

-- A stock whose round has closed is over.
CREATE FUNCTION stock_state_at(p_state stock_state, p_closes_at timestamptz, p_at timestamptz) RETURNS stock_state
    LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN p_at >= p_closes_at AND p_state <> 'CLOSED' THEN 'ENDED'::stock_state ELSE p_state END $$;

-- Every move there is.
CREATE FUNCTION stock_transitions() RETURNS TABLE (verb stock_verb, from_state stock_state, to_state stock_state)
    LANGUAGE sql IMMUTABLE AS $$
    VALUES ('SUBMIT'::stock_verb, 'DRAFT'::stock_state, 'AUDIT'::stock_state),
           ('APPROVE', 'AUDIT', 'SCHEDULED'), ('REJECT', 'AUDIT', 'DRAFT'),
           ('PAUSE', 'SCHEDULED', 'PAUSED'), ('RESUME', 'PAUSED', 'SCHEDULED'),
           ('END', 'SCHEDULED', 'ENDED'), ('END', 'PAUSED', 'ENDED'), ('CLOSE', 'ENDED', 'CLOSED') $$;

CREATE FUNCTION stock_issued_of(p_stock_no integer) RETURNS bigint
    LANGUAGE sql STABLE AS $$ SELECT coalesce(sum(issued), 0)::bigint FROM stock_issued WHERE stock_no = p_stock_no $$;

-- Moves a stock. outcome: MOVED; REPLAYED when it is already there; else why not, with nothing changed.
-- Whoever submitted it cannot approve it.
CREATE FUNCTION move_stock(p_stock_no integer, p_verb stock_verb, p_by text, p_why text, p_at timestamptz,
                           OUT outcome text, OUT detail text, OUT state stock_state)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_stored    stock_state;
    v_closes_at timestamptz;
    v_to        stock_state;
    v_submitter text;
BEGIN
    SELECT s.state, d.closes_at INTO v_stored, v_closes_at
      FROM stock s JOIN round d USING (round_no) WHERE s.stock_no = p_stock_no FOR UPDATE OF s;
    IF NOT FOUND THEN
        outcome := 'UNKNOWN_STOCK';
        detail := format('there is no stock %s', p_stock_no);
        RETURN;
    END IF;
    state := stock_state_at(v_stored, v_closes_at, p_at);
    IF state = (SELECT t.to_state FROM stock_transitions() t WHERE t.verb = p_verb LIMIT 1) THEN
        outcome := 'REPLAYED';
        RETURN;
    END IF;
    v_to := (SELECT t.to_state FROM stock_transitions() t WHERE t.verb = p_verb AND t.from_state = move_stock.state);
    IF v_to IS NULL THEN
        outcome := 'STATE_CONFLICT';
        detail := format('the stock is %s; this can be done to one that is %s', state,
                         (SELECT string_agg(t.from_state::text, ' or ') FROM stock_transitions() t WHERE t.verb = p_verb));
        RETURN;
    END IF;
    IF p_verb IN ('REJECT', 'END') AND p_why = '' THEN
        outcome := 'NO_REASON';
        detail := 'say why';
        RETURN;
    END IF;
    IF p_verb = 'APPROVE' THEN
        v_submitter := (SELECT m.moved_by FROM stock_move m WHERE m.stock_no = p_stock_no AND m.verb = 'SUBMIT'
                         ORDER BY m.move_no DESC LIMIT 1);
        IF v_submitter IS NULL OR lower(v_submitter) = lower(p_by) THEN
            outcome := CASE WHEN v_submitter IS NULL THEN 'NOT_SUBMITTED' ELSE 'SAME_PERSON' END;
            detail := coalesce(v_submitter || ' submitted it; someone else must approve it',
                               'nobody is on record as having submitted it; reject it and submit it again');
            RETURN;
        END IF;
    END IF;
    IF p_verb = 'CLOSE' AND EXISTS (SELECT FROM stock_edit e WHERE e.stock_no = p_stock_no AND e.state = 'PENDING') THEN
        outcome := 'PENDING_EDIT';
        detail := 'an edit of its quantity is under way';
        RETURN;
    END IF;
    UPDATE stock s SET state = v_to WHERE s.stock_no = p_stock_no;
    INSERT INTO stock_move (stock_no, verb, from_state, to_state, moved_by, why, moved_at)
    VALUES (p_stock_no, p_verb, state, v_to, p_by, p_why, p_at);
    outcome := 'MOVED';
    state := v_to;
END $$;

-- What BUDGET holds beyond what may still be issued: by this round, and by rounds of its campaign that are open, about to
-- be (10 minutes), or closed for less than an hour, whose last wins may be on their way. p_over is left out.
CREATE FUNCTION budget_room_fen(p_round_no smallint, p_over smallint, p_at timestamptz) RETURNS bigint
    LANGUAGE sql STABLE AS $$
    WITH it AS (
        SELECT campaign_no FROM round WHERE round_no = p_round_no
    ), live AS (
        SELECT s.quantity, s.funded_fen, coalesce((SELECT sum(i.issued) FROM stock_issued i WHERE i.stock_no = s.stock_no), 0) AS issued
          FROM it JOIN round d USING (campaign_no) JOIN stock s USING (round_no)
         WHERE s.state <> 'CLOSED' AND d.round_no <> p_over
           AND (d.round_no = p_round_no OR p_at BETWEEN d.opens_at - interval '10 minutes' AND d.closes_at + interval '1 hour')
    )
    SELECT (coalesce((SELECT a.credits_fen - a.debits_fen FROM account a JOIN it USING (campaign_no)
                       WHERE a.bucket = 0 AND a.merchant_no = 0 AND a.kind = 'BUDGET'), 0)
            - coalesce((SELECT sum((quantity - issued) * funded_fen) FROM live), 0))::bigint
$$;

-- Gives units to shards, or takes them, under new numbers. p_units negative: they are asked for, and what the shard
-- could give is not known yet.
CREATE FUNCTION add_adjustments(p_edit_no bigint, p_shard smallint[], p_units bigint[]) RETURNS void
    LANGUAGE sql AS $$
    WITH edit AS (
        SELECT e.stock_no, greatest(s.adjust_no, (SELECT max(a.adjust_no) FROM stock_adjustment a WHERE a.stock_no = s.stock_no)) AS last_no
          FROM stock_edit e JOIN stock s USING (stock_no) WHERE e.edit_no = p_edit_no
    )
    INSERT INTO stock_adjustment (stock_no, adjust_no, edit_no, shard, delta, applied)
    SELECT edit.stock_no, edit.last_no + row_number() OVER (ORDER BY u.item), p_edit_no, u.shard, u.units,
           CASE WHEN u.units > 0 THEN u.units END
      FROM edit CROSS JOIN unnest(p_shard, p_units) WITH ORDINALITY AS u(shard, units, item) WHERE u.units <> 0
$$;

-- Deals units to all shards as evenly as a new stock is dealt.
CREATE FUNCTION deal_units(p_edit_no bigint, p_units bigint) RETURNS void
    LANGUAGE sql AS $$
    SELECT add_adjustments(p_edit_no, array_agg(n::smallint ORDER BY n),
                           array_agg(p_units * (n + 1) / c.shards - p_units * n / c.shards ORDER BY n))
      FROM city c CROSS JOIN LATERAL generate_series(0, c.shards - 1) AS n
$$;

-- Changes a quantity, and notes that it contains every adjustment there is.
CREATE FUNCTION change_quantity(p_stock_no integer, p_units bigint) RETURNS void
    LANGUAGE sql AS $$
    UPDATE stock s SET quantity = s.quantity + p_units,
           adjust_no = greatest(s.adjust_no, (SELECT max(a.adjust_no) FROM stock_adjustment a WHERE a.stock_no = p_stock_no))
     WHERE s.stock_no = p_stock_no
$$;

-- Begins an edit of a stock's quantity. outcome: DONE (up, or down while no shard holds it); PENDING (down: units must be
-- taken back first); REPLAYED when this very edit was the last one; else why not, with nothing changed. quantity is the true one.
-- The caller holds the lock of the round (4822).
CREATE FUNCTION edit_stock(p_stock_no integer, p_current integer, p_target integer, p_is_held boolean, p_by text, p_why text,
                           p_at timestamptz, OUT outcome text, OUT detail text, OUT edit_no bigint, OUT quantity integer)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_stock stock;
    v_round round;
    v_last  stock_edit;
    v_state stock_state;
    v_fen   bigint;
BEGIN
    SELECT * INTO v_stock FROM stock s WHERE s.stock_no = p_stock_no FOR UPDATE;
    IF NOT FOUND THEN
        outcome := 'UNKNOWN_STOCK';
        detail := format('there is no stock %s', p_stock_no);
        RETURN;
    END IF;
    SELECT * INTO v_round FROM round d WHERE d.round_no = v_stock.round_no FOR UPDATE;
    SELECT * INTO v_last FROM stock_edit e WHERE e.stock_no = p_stock_no ORDER BY e.edit_no DESC LIMIT 1;
    quantity := v_stock.quantity;
    v_state := stock_state_at(v_stock.state, v_round.closes_at, p_at);
    IF v_last.state = 'PENDING' THEN
        outcome := 'PENDING_EDIT';
        detail := format('an edit to %s by %s is under way', v_last.target_quantity, v_last.asked_by);
        RETURN;
    END IF;
    IF v_last.state = 'DONE' AND v_last.current_quantity = p_current AND v_last.target_quantity = p_target
       AND lower(v_last.asked_by) = lower(p_by) AND quantity = p_target THEN
        outcome := 'REPLAYED';
        edit_no := v_last.edit_no;
        RETURN;
    END IF;
    IF v_state IN ('ENDED', 'CLOSED') THEN
        outcome := 'STATE_CONFLICT';
        detail := format('the stock is %s', v_state);
        RETURN;
    END IF;
    IF quantity <> p_current THEN
        outcome := 'STALE';
        detail := format('the quantity is %s, not %s; look at the stock again', quantity, p_current);
        RETURN;
    END IF;
    IF p_target = quantity THEN
        outcome := 'REPLAYED';
        RETURN;
    END IF;
    IF p_target < stock_issued_of(p_stock_no) THEN
        outcome := 'BELOW_ISSUED';
        detail := format('%s vouchers are out already', stock_issued_of(p_stock_no));
        RETURN;
    END IF;
    IF p_target > quantity THEN
        PERFORM FROM campaign c WHERE c.campaign_no = v_round.campaign_no FOR NO KEY UPDATE;
        v_fen := (SELECT sum(s.quantity * s.funded_fen) FROM stock s WHERE s.round_no = v_round.round_no)
                 + (p_target - quantity) * v_stock.funded_fen - v_round.budget_fen;
        IF v_fen > 0 THEN
            outcome := 'OVER_ROUND_BUDGET';
            detail := format('the round''s budget of %s fen is %s fen short; take units from another stock, or roll money over',
                             v_round.budget_fen, v_fen);
            RETURN;
        END IF;
        v_fen := (p_target - quantity) * v_stock.funded_fen - budget_room_fen(v_round.round_no, 0::smallint, p_at);
        IF v_fen > 0 THEN
            outcome := 'BUDGET_SHORT';
            detail := format('BUDGET is %s fen short', v_fen);
            RETURN;
        END IF;
    END IF;
    outcome := CASE WHEN p_target < quantity AND p_is_held THEN 'PENDING' ELSE 'DONE' END;
    INSERT INTO stock_edit (stock_no, current_quantity, target_quantity, state, asked_by, why, asked_at, done_at)
    VALUES (p_stock_no, p_current, p_target, outcome::edit_state, p_by, p_why, p_at, CASE WHEN outcome = 'DONE' THEN p_at END)
    RETURNING stock_edit.edit_no INTO edit_no;
    IF outcome = 'DONE' THEN
        IF p_target > quantity THEN
            PERFORM deal_units(edit_no, p_target - quantity);
        END IF;
        PERFORM change_quantity(p_stock_no, p_target - quantity);
        quantity := p_target;
    END IF;
END $$;

-- Writes down what is to be taken from shards for a pending edit, before any of it is taken.
CREATE FUNCTION ask_back(p_edit_no bigint, p_shard smallint[], p_units bigint[]) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM FROM stock_edit e WHERE e.edit_no = p_edit_no AND e.state = 'PENDING' FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'edit % is not pending', p_edit_no USING ERRCODE = 'HQ002';
    END IF;
    PERFORM add_adjustments(p_edit_no, p_shard, (SELECT array_agg(-units ORDER BY item) FROM unnest(p_units) WITH ORDINALITY u(units, item)));
END $$;

-- Writes down what a shard gave for a pending edit.
CREATE FUNCTION note_given(p_edit_no bigint, p_adjust_no bigint, p_applied bigint) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    UPDATE stock_adjustment a SET applied = p_applied FROM stock_edit e
     WHERE e.edit_no = p_edit_no AND e.state = 'PENDING' AND a.edit_no = e.edit_no AND a.adjust_no = p_adjust_no
$$;

-- Ends a pending edit: DONE when all units came back, else REFUSED, and the shards get back what they gave.
CREATE FUNCTION finish_edit(p_edit_no bigint, p_at timestamptz, OUT outcome text, OUT quantity integer)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_edit  stock_edit;
    v_given bigint;
BEGIN
    SELECT * INTO STRICT v_edit FROM stock_edit e WHERE e.edit_no = p_edit_no FOR UPDATE;
    PERFORM FROM stock s WHERE s.stock_no = v_edit.stock_no FOR UPDATE;
    IF v_edit.state <> 'PENDING' THEN
        outcome := v_edit.state;
        quantity := (SELECT s.quantity FROM stock s WHERE s.stock_no = v_edit.stock_no);
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM stock_adjustment a WHERE a.edit_no = p_edit_no AND a.applied IS NULL) THEN
        RAISE EXCEPTION 'edit %: a shard has not answered', p_edit_no USING ERRCODE = 'HQ002';
    END IF;
    v_given := coalesce((SELECT -sum(a.applied) FROM stock_adjustment a WHERE a.edit_no = p_edit_no), 0);
    outcome := CASE WHEN v_given = v_edit.current_quantity - v_edit.target_quantity THEN 'DONE' ELSE 'REFUSED' END;
    IF outcome = 'REFUSED' THEN
        PERFORM add_adjustments(p_edit_no, array_agg(g.shard), array_agg(g.units))
           FROM (SELECT a.shard, -sum(a.applied)::bigint AS units FROM stock_adjustment a WHERE a.edit_no = p_edit_no
                  GROUP BY a.shard ORDER BY a.shard) g HAVING count(*) > 0;
    END IF;
    PERFORM change_quantity(v_edit.stock_no, CASE outcome WHEN 'DONE' THEN -v_given ELSE 0 END);
    quantity := (SELECT s.quantity FROM stock s WHERE s.stock_no = v_edit.stock_no);
    UPDATE stock_edit e SET state = outcome::edit_state, done_at = p_at WHERE e.edit_no = p_edit_no;
END $$;

-- What nobody claimed of the stocks of a round, each with the stock of another round that can take it: of the same partner,
-- category and value. Stocks that were rolled over before are left out.
CREATE FUNCTION unclaimed_units(p_from smallint, p_to smallint)
    RETURNS TABLE (from_stock_no integer, to_stock_no integer, units integer, funded_fen bigint)
    LANGUAGE sql STABLE AS $$
    SELECT s.stock_no, (SELECT min(n.stock_no) FROM stock n
                         WHERE n.round_no = p_to AND n.state NOT IN ('ENDED', 'CLOSED')
                           AND (n.partner_no, n.category, n.is_granted, n.face_value_fen, n.funded_fen)
                             = (s.partner_no, s.category, s.is_granted, s.face_value_fen, s.funded_fen)),
           s.quantity - stock_issued_of(s.stock_no)::integer, s.funded_fen
      FROM stock s WHERE s.round_no = p_from AND NOT EXISTS (SELECT FROM rollover_stock r WHERE r.from_stock_no = s.stock_no)
$$;

-- Money that finance returned to a campaign's BUDGET and that raised no round's budget yet.
CREATE FUNCTION unrolled_returns(p_campaign_no smallint) RETURNS SETOF fund_return
    LANGUAGE sql STABLE AS $$
    SELECT f.* FROM fund_return f
     WHERE f.campaign_no = p_campaign_no AND f.credit = 'BUDGET'
       AND NOT EXISTS (SELECT FROM rollover_return r WHERE r.campaign_no = f.campaign_no AND r.reference = f.reference)
$$;

-- An edit that is done as it is written down: part of a rollover.
CREATE FUNCTION record_edit(p_stock_no integer, p_units bigint, p_by text, p_why text, p_at timestamptz) RETURNS bigint
    LANGUAGE sql AS $$
    INSERT INTO stock_edit (stock_no, current_quantity, target_quantity, state, asked_by, why, asked_at, done_at)
    SELECT s.stock_no, s.quantity, s.quantity + p_units, 'DONE', p_by, p_why, p_at, p_at FROM stock s WHERE s.stock_no = p_stock_no
    RETURNING edit_no
$$;

-- Rolls a round that is over into another of its campaign: vouchers nobody claimed into the same partner's stock of the same
-- category and value, money that finance returned to BUDGET into the round's budget. The stocks that are over are closed.
-- outcome: ROLLED; REPLAYED when nothing new was left to roll; else why not, with nothing changed. The caller holds the
-- locks of both rounds (4822), all wins of the first are in the books, and p_left is what shards have left of its stocks.
CREATE FUNCTION roll_over(p_from smallint, p_to smallint, p_stock_no integer[], p_shard smallint[], p_left bigint[], p_by text,
                          p_why text, p_at timestamptz, OUT outcome text, OUT detail text, OUT rollover_no integer)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_from     round;
    v_to       round;
    v_carried  bigint;
    v_returned bigint;
    v_short    bigint;
    v_edit_no  bigint;
    v_stock    rollover_stock;
    v_why      text;
BEGIN
    PERFORM FROM round d WHERE d.round_no IN (p_from, p_to) ORDER BY d.round_no FOR UPDATE;
    PERFORM FROM stock s WHERE s.round_no IN (p_from, p_to) ORDER BY s.stock_no FOR UPDATE;
    SELECT * INTO STRICT v_from FROM round d WHERE d.round_no = p_from;
    SELECT * INTO STRICT v_to FROM round d WHERE d.round_no = p_to;
    PERFORM FROM campaign c WHERE c.campaign_no = v_from.campaign_no FOR NO KEY UPDATE;
    outcome := CASE
        WHEN v_from.campaign_no <> v_to.campaign_no OR p_from = p_to THEN 'OTHER_ROUND'
        WHEN EXISTS (SELECT FROM stock s WHERE s.round_no = p_from AND stock_state_at(s.state, v_from.closes_at, p_at) NOT IN ('ENDED', 'CLOSED'))
            THEN 'NOT_ENDED'
        WHEN p_at >= v_to.closes_at THEN 'ENDED'
        WHEN EXISTS (SELECT FROM stock_edit e JOIN stock s USING (stock_no) WHERE e.state = 'PENDING' AND s.round_no IN (p_from, p_to))
            THEN 'PENDING_EDIT' END;
    IF outcome IS NOT NULL THEN
        detail := CASE outcome
            WHEN 'OTHER_ROUND' THEN 'name another round of the same campaign'
            WHEN 'NOT_ENDED' THEN format('round %s is not over', v_from.round_id)
            WHEN 'ENDED' THEN format('round %s is over too', v_to.round_id)
            ELSE 'an edit of a quantity is under way' END;
        RETURN;
    END IF;
    v_carried := coalesce((SELECT sum(u.units * u.funded_fen) FROM unclaimed_units(p_from, p_to) u WHERE u.to_stock_no IS NOT NULL), 0);
    v_returned := coalesce((SELECT sum(f.amount_fen) FROM unrolled_returns(v_from.campaign_no) f), 0);
    IF v_returned = 0 AND NOT EXISTS (SELECT FROM unclaimed_units(p_from, p_to)) THEN
        outcome := 'REPLAYED';
        rollover_no := (SELECT max(r.rollover_no) FROM rollover r WHERE r.from_round_no = p_from);
        RETURN;
    END IF;
    v_short := v_carried - budget_room_fen(p_to, p_from, p_at);
    IF v_short > 0 THEN
        outcome := 'BUDGET_SHORT';
        detail := format('BUDGET is %s fen short of what round %s would give out', v_short, v_to.round_id);
        RETURN;
    END IF;
    INSERT INTO rollover (from_round_no, to_round_no, carried_fen, returned_fen, rolled_by, why, rolled_at)
    VALUES (p_from, p_to, v_carried, v_returned, p_by, p_why, p_at) RETURNING rollover.rollover_no INTO rollover_no;
    INSERT INTO rollover_return (campaign_no, reference, rollover_no)
    SELECT f.campaign_no, f.reference, roll_over.rollover_no FROM unrolled_returns(v_from.campaign_no) f;
    INSERT INTO rollover_stock (from_stock_no, rollover_no, to_stock_no, units)
    SELECT u.from_stock_no, roll_over.rollover_no, u.to_stock_no, u.units FROM unclaimed_units(p_from, p_to) u;
    v_why := format('rollover %s', rollover_no);
    FOR v_stock IN SELECT * FROM rollover_stock r WHERE r.rollover_no = roll_over.rollover_no AND r.units > 0 ORDER BY r.from_stock_no LOOP
        v_edit_no := record_edit(v_stock.from_stock_no, -v_stock.units, p_by, v_why, p_at);
        PERFORM add_adjustments(v_edit_no, array_agg(l.shard ORDER BY l.shard), array_agg(-l.units ORDER BY l.shard))
           FROM unnest(p_stock_no, p_shard, p_left) AS l(stock_no, shard, units) WHERE l.stock_no = v_stock.from_stock_no HAVING count(*) > 0;
        UPDATE stock_adjustment a SET applied = a.delta WHERE a.edit_no = v_edit_no;
        PERFORM change_quantity(v_stock.from_stock_no, -v_stock.units);
        IF v_stock.to_stock_no IS NOT NULL THEN
            v_edit_no := record_edit(v_stock.to_stock_no, v_stock.units, p_by, v_why, p_at);
            PERFORM deal_units(v_edit_no, v_stock.units);
            PERFORM change_quantity(v_stock.to_stock_no, v_stock.units);
        END IF;
    END LOOP;
    UPDATE round d SET budget_fen = d.budget_fen - v_carried WHERE d.round_no = p_from;
    UPDATE round d SET budget_fen = d.budget_fen + v_carried + v_returned WHERE d.round_no = p_to;
    INSERT INTO stock_move (stock_no, verb, from_state, to_state, moved_by, why, moved_at)
    SELECT s.stock_no, 'CLOSE', 'ENDED', 'CLOSED', p_by, v_why, p_at
      FROM stock s WHERE s.round_no = p_from AND s.state <> 'CLOSED' ORDER BY s.stock_no;
    UPDATE stock s SET state = 'CLOSED' WHERE s.round_no = p_from AND s.state <> 'CLOSED';
    outcome := 'ROLLED';
END $$;

SELECT make_append_only(t) FROM unnest(ARRAY['stock_move', 'rollover', 'rollover_stock', 'rollover_return']::regclass[]) AS t;

REVOKE EXECUTE ON FUNCTION stock_state_at, stock_transitions, stock_issued_of, move_stock, budget_room_fen, add_adjustments, deal_units,
    change_quantity, edit_stock, ask_back, note_given, finish_edit, unclaimed_units, unrolled_returns, record_edit, roll_over FROM PUBLIC;

GRANT SELECT ON operator, stock_move, stock_edit, stock_adjustment, rollover, rollover_stock, rollover_return
   TO hanquan_operator, hanquan_finance, hanquan_auditor;
GRANT SELECT ON operator, stock_edit, stock_adjustment TO hanquan_issuer;
GRANT SELECT ON operator TO hanquan_redemption;
GRANT INSERT ON operator TO hanquan_operator;
GRANT EXECUTE ON FUNCTION stock_state_at TO hanquan_operator, hanquan_issuer, hanquan_finance, hanquan_auditor;
GRANT EXECUTE ON FUNCTION stock_transitions, stock_issued_of, move_stock, budget_room_fen, edit_stock, ask_back, note_given,
    finish_edit, roll_over TO hanquan_operator;
GRANT EXECUTE ON FUNCTION ask_back, note_given, finish_edit TO hanquan_issuer; -- ends what an operator began

-- ---------------------------------------------------------------- grants to a list of people

CREATE TABLE grant_run (
    run_no      integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    stock_no    integer REFERENCES stock,
    pack_no     integer REFERENCES pack,
    sha256      bytea NOT NULL CHECK (length(sha256) = 32),
    people      integer NOT NULL CHECK (people BETWEEN 1 AND 1000000),
    granted_by  staff_name NOT NULL,
    began_at    timestamptz NOT NULL,
    CHECK (num_nonnulls(stock_no, pack_no) = 1)
);
COMMENT ON TABLE grant_run IS 'A list was handed out, by whom and when; the same list may run again, and grants nobody twice.';
COMMENT ON COLUMN grant_run.sha256 IS 'Of the list as it was given. The list itself is not kept: the vouchers say who has one.';

CREATE TABLE grant_result (
    run_no   integer NOT NULL REFERENCES grant_run,
    outcome  text NOT NULL CHECK (outcome ~ '^[A-Z_]{3,40}$'),
    people   integer NOT NULL CHECK (people > 0),
    PRIMARY KEY (run_no, outcome)
);
COMMENT ON TABLE grant_result IS 'How many people of a run got what. A run that broke off has no rows.';

SELECT make_append_only(t) FROM unnest(ARRAY['grant_run', 'grant_result']::regclass[]) AS t;

GRANT SELECT ON grant_run, grant_result TO hanquan_auditor, hanquan_finance;
GRANT SELECT, INSERT ON grant_run, grant_result TO hanquan_operator;

-- ---------------------------------------------------------------- offers: when, where and what they are called

-- When a voucher ends: at the stock's end, or with its own last day in the city if that is before it. Like kernel.clock.ends_at.
CREATE FUNCTION voucher_end(valid_until timestamptz, valid_days smallint, claimed_at timestamptz) RETURNS timestamptz
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT least(valid_until, (date_trunc('day', claimed_at AT TIME ZONE 'Asia/Shanghai')
                               + make_interval(days => valid_days, secs => -1)) AT TIME ZONE 'Asia/Shanghai')
$$;

CREATE TABLE stock_district (
    stock_no  integer NOT NULL REFERENCES stock,
    district  text NOT NULL CHECK (length(district) BETWEEN 1 AND 80),
    PRIMARY KEY (stock_no, district)
);
COMMENT ON TABLE stock_district IS 'Districts in whose shops a stock''s vouchers are good; a stock without rows is good in all.';

CREATE TABLE stock_merchant (
    stock_no     integer NOT NULL REFERENCES stock,
    merchant_no  integer NOT NULL REFERENCES merchant,
    PRIMARY KEY (stock_no, merchant_no)
);
COMMENT ON TABLE stock_merchant IS 'Shops in which a stock''s vouchers are good; a stock without rows is good in all.';

CREATE TABLE category_name (
    campaign_no  smallint NOT NULL REFERENCES campaign,
    category     text NOT NULL,
    name_zh      text NOT NULL,
    name_en      text NOT NULL,
    PRIMARY KEY (campaign_no, category)
);
COMMENT ON TABLE category_name IS 'What a campaign calls its categories. Campaigns loaded before there was this table have no rows.';

SELECT make_append_only(t) FROM unnest(ARRAY['stock_district', 'stock_merchant', 'category_name']::regclass[]) AS t;

REVOKE EXECUTE ON FUNCTION voucher_end FROM PUBLIC;
GRANT EXECUTE ON FUNCTION voucher_end TO hanquan_issuer, hanquan_redemption, hanquan_finance, hanquan_operator, hanquan_auditor;
GRANT SELECT ON stock_district, stock_merchant, category_name
   TO hanquan_issuer, hanquan_redemption, hanquan_finance, hanquan_antifraud, hanquan_operator, hanquan_auditor;
GRANT INSERT ON stock_district, stock_merchant, category_name TO hanquan_operator;

-- ---------------------------------------------------------------- merchants: onboarding, stores, keys, standing

CREATE DOMAIN credit_code AS text COLLATE "C" CHECK (VALUE ~ '^[0-9A-HJ-NPQRTUWXY]{2}[0-9]{6}[0-9A-HJ-NPQRTUWXY]{10}$');
COMMENT ON DOMAIN credit_code IS 'Unified social credit code, GB 32100-2015. The check digit is looked at where one is read (redemption/merchants/credit_code.py).';

CREATE TYPE application_state AS ENUM (
    'DRAFT',      -- something is missing or wrong; the next one replaces it
    'SUBMITTED',  -- complete; somebody else must decide
    'APPROVED',   -- the merchant is enrolled
    'REJECTED'    -- its papers are free again
);

CREATE TABLE register_load (
    load_no    integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    what       text NOT NULL CHECK (what IN ('REGISTER', 'PUBLIC_LIST')),
    sha256     bytea NOT NULL CHECK (length(sha256) = 32),
    entries    integer NOT NULL CHECK (entries > 0),
    loaded_by  staff_name NOT NULL,
    loaded_at  timestamptz NOT NULL
);
COMMENT ON TABLE register_load IS 'A file of the register or of the public list was loaded, by whom and when.';

CREATE TABLE business (
    credit_code  credit_code PRIMARY KEY,
    name         text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    status       text NOT NULL CHECK (status IN ('ACTIVE', 'REVOKED', 'CANCELLED', 'MOVED')),
    valid_until  date,
    load_no      integer NOT NULL REFERENCES register_load
);
COMMENT ON TABLE business IS 'The register of businesses as it was last loaded; what papers are checked against.';
COMMENT ON COLUMN business.valid_until IS 'The last day of its term; null: no end.';

CREATE TABLE forger_listing (
    credit_code   credit_code NOT NULL,
    listed_on     date NOT NULL,
    listed_until  date NOT NULL CHECK (listed_until >= listed_on),
    reason        text NOT NULL CHECK (length(reason) BETWEEN 1 AND 500),
    load_no       integer NOT NULL REFERENCES register_load,
    PRIMARY KEY (credit_code, listed_on)
);
COMMENT ON TABLE forger_listing IS 'The public list of businesses that showed forged papers. Every entry has a last day.';

CREATE TABLE merchant_application (
    application_no  integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    merchant_id     text NOT NULL CHECK (merchant_id ~ '^[A-Za-z0-9_-]{4,32}$'),
    credit_code     credit_code,
    state           application_state NOT NULL,
    document        text NOT NULL,
    sent_by         staff_name NOT NULL,
    sent_at         timestamptz NOT NULL,
    decided_by      staff_name,
    decided_at      timestamptz,
    why             text NOT NULL DEFAULT '' CHECK (length(why) <= 500),
    merchant_no     integer UNIQUE REFERENCES merchant,
    CHECK (state = 'DRAFT' OR credit_code IS NOT NULL),
    CHECK ((state IN ('APPROVED', 'REJECTED')) = (decided_by IS NOT NULL)),
    CHECK ((decided_by IS NULL) = (decided_at IS NULL)),
    CHECK ((state = 'APPROVED') = (merchant_no IS NOT NULL)),
    CHECK (state <> 'REJECTED' OR why <> ''),
    CONSTRAINT two_people CHECK (lower(decided_by) <> lower(sent_by))
);
CREATE UNIQUE INDEX merchant_application_draft ON merchant_application (merchant_id) WHERE state = 'DRAFT';
CREATE UNIQUE INDEX merchant_application_id ON merchant_application (merchant_id) WHERE state IN ('SUBMITTED', 'APPROVED');
CREATE UNIQUE INDEX merchant_application_code ON merchant_application (credit_code) WHERE state IN ('SUBMITTED', 'APPROVED');
COMMENT ON COLUMN merchant_application.document IS 'What was applied for, as JSON in our own form; fields nobody knows are not kept.';

CREATE TABLE merchant_paper (
    application_no  integer NOT NULL REFERENCES merchant_application,
    paper_no        smallint NOT NULL CHECK (paper_no > 0),
    kind            text NOT NULL CHECK (kind ~ '^[A-Z_]{3,40}$'),
    number          text NOT NULL CHECK (length(number) BETWEEN 1 AND 64),
    holder          text NOT NULL CHECK (length(holder) BETWEEN 1 AND 200),
    valid_from      date NOT NULL,
    valid_until     date CHECK (valid_until >= valid_from),
    sha256          bytea NOT NULL CHECK (length(sha256) = 32),
    is_live         boolean NOT NULL DEFAULT true,
    PRIMARY KEY (application_no, paper_no)
);
CREATE UNIQUE INDEX merchant_paper_number ON merchant_paper (kind, number) WHERE is_live;
CREATE UNIQUE INDEX merchant_paper_file ON merchant_paper (sha256) WHERE is_live;
COMMENT ON TABLE merchant_paper IS 'Papers of applications that were submitted. Names of businesses only; the files are not kept here.';
COMMENT ON COLUMN merchant_paper.sha256 IS 'Of the file that was shown.';
COMMENT ON COLUMN merchant_paper.is_live IS 'Its application waits or was approved: nobody else can show the same paper.';

CREATE TABLE store (
    store_no     integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    merchant_no  integer NOT NULL REFERENCES merchant,
    store_id     text NOT NULL CHECK (store_id ~ '^[A-Za-z0-9_-]{1,32}$'),
    name         text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    district     text NOT NULL CHECK (length(district) BETWEEN 1 AND 64),
    address      text NOT NULL CHECK (length(address) BETWEEN 1 AND 200),
    category     text NOT NULL CHECK (length(category) BETWEEN 1 AND 64),
    added_by     staff_name NOT NULL,
    added_at     timestamptz NOT NULL,
    suspended    boolean NOT NULL DEFAULT false,
    UNIQUE (merchant_no, store_id),
    UNIQUE (merchant_no, store_no)
);
COMMENT ON COLUMN store.suspended IS 'None of its terminals may sign.';

ALTER TABLE terminal ADD FOREIGN KEY (merchant_no, store_no) REFERENCES store (merchant_no, store_no);
COMMENT ON COLUMN terminal.store_no IS 'Where it stands; null for one that was enrolled without a store.';

CREATE TABLE standing_change (
    change_no    bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    merchant_no  integer NOT NULL REFERENCES merchant,
    store_no     integer REFERENCES store,
    terminal_no  integer REFERENCES terminal,
    verb         text NOT NULL CHECK (verb IN ('SUSPEND', 'RESUME')),
    until        timestamptz,
    why          text NOT NULL CHECK (length(why) <= 500),
    changed_by   staff_name NOT NULL,
    changed_at   timestamptz NOT NULL,
    CHECK (num_nonnulls(store_no, terminal_no) <= 1),
    CHECK (verb = 'RESUME' OR why <> ''),
    CHECK (until IS NULL OR (verb = 'SUSPEND' AND num_nonnulls(store_no, terminal_no) = 0 AND until > changed_at))
);
CREATE INDEX standing_change_merchant ON standing_change (merchant_no, change_no);
COMMENT ON TABLE standing_change IS 'Who suspended or resumed a merchant, one of its stores or one of its terminals.';

CREATE TABLE key_change (
    change_no      bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    serial_no      text NOT NULL REFERENCES api_key,
    verb           text NOT NULL CHECK (verb IN ('ISSUE', 'ROTATE', 'REVOKE')),
    old_serial_no  text REFERENCES api_key,
    changed_by     staff_name,
    why            text NOT NULL DEFAULT '' CHECK (length(why) <= 500),
    changed_at     timestamptz NOT NULL,
    CHECK ((verb = 'ROTATE') = (old_serial_no IS NOT NULL)),
    CHECK (verb = 'ROTATE' OR changed_by IS NOT NULL),
    CHECK (verb <> 'REVOKE' OR why <> '')
);
CREATE INDEX key_change_serial ON key_change (serial_no);
CREATE INDEX key_change_old ON key_change (old_serial_no) WHERE old_serial_no IS NOT NULL;
COMMENT ON TABLE key_change IS 'How terminals came by their keys and lost them.';
COMMENT ON COLUMN key_change.changed_by IS 'Null: the merchant itself, with its old key.';

-- Whoever keeps merchants and keys in memory reads them again at once: a suspension must not wait.
CREATE FUNCTION tell_of_merchant() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NOTIFY hanquan_merchant;
    RETURN NULL;
END $$;
CREATE TRIGGER tell_of_merchant AFTER INSERT OR UPDATE ON merchant FOR EACH STATEMENT EXECUTE FUNCTION tell_of_merchant();
CREATE TRIGGER tell_of_merchant AFTER INSERT OR UPDATE ON store FOR EACH STATEMENT EXECUTE FUNCTION tell_of_merchant();
CREATE TRIGGER tell_of_merchant AFTER INSERT OR UPDATE ON terminal FOR EACH STATEMENT EXECUTE FUNCTION tell_of_merchant();
CREATE TRIGGER tell_of_merchant AFTER INSERT OR UPDATE ON api_key FOR EACH STATEMENT EXECUTE FUNCTION tell_of_merchant();

-- A terminal's key: its first one (no old key), or the one that follows another, which then ends after the overlap.
-- A terminal has one key, and two only while one follows the other. p_by null: the merchant itself asks.
-- outcome: ADDED; REPLAYED when this very key was added before; else why not, with nothing changed.
CREATE FUNCTION add_terminal_key(p_terminal_no integer, p_old_serial_no text, p_serial_no text, p_algorithm text, p_material bytea,
                                 p_by text, p_overlap interval, p_life interval, p_at timestamptz,
                                 OUT outcome text, OUT not_after timestamptz, OUT old_not_after timestamptz)
    LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    v_terminal terminal;
    v_merchant merchant;
    v_known    api_key;
BEGIN
    SELECT * INTO v_terminal FROM terminal t WHERE t.terminal_no = p_terminal_no FOR UPDATE;
    IF NOT FOUND THEN
        outcome := 'NO_TERMINAL';
        RETURN;
    END IF;
    SELECT * INTO STRICT v_merchant FROM merchant m WHERE m.merchant_no = v_terminal.merchant_no;
    old_not_after := (SELECT k.not_after FROM api_key k
                       WHERE k.serial_no = p_old_serial_no AND k.terminal_no = p_terminal_no AND k.revoked_at IS NULL
                         AND k.not_before <= p_at AND k.not_after > p_at);
    SELECT * INTO v_known FROM api_key k WHERE k.serial_no = p_serial_no;
    outcome := CASE
        WHEN v_known.terminal_no = p_terminal_no AND v_known.revoked_at IS NULL
             AND EXISTS (SELECT FROM key_change c WHERE c.serial_no = p_serial_no AND c.old_serial_no IS NOT DISTINCT FROM p_old_serial_no)
            THEN 'REPLAYED'
        WHEN v_known.serial_no IS NOT NULL THEN 'KEY_TAKEN'
        WHEN p_by IS NULL AND (v_terminal.suspended OR (v_merchant.suspended AND coalesce(v_merchant.suspended_until > p_at, true))
             OR EXISTS (SELECT FROM store s WHERE s.store_no = v_terminal.store_no AND s.suspended)) THEN 'SUSPENDED'
        WHEN p_old_serial_no IS NOT NULL AND old_not_after IS NULL THEN 'NOT_LIVE'
        WHEN EXISTS (SELECT FROM api_key k WHERE k.terminal_no = p_terminal_no AND k.revoked_at IS NULL AND k.not_after > p_at
                        AND k.serial_no IS DISTINCT FROM p_old_serial_no) THEN 'HAS_KEY'
        ELSE 'ADDED' END;
    not_after := coalesce(v_known.not_after, p_at + p_life);
    IF outcome <> 'ADDED' THEN
        RETURN;
    END IF;
    INSERT INTO api_key (serial_no, holder_kind, holder_id, terminal_no, algorithm, key_material, not_before, not_after)
    VALUES (p_serial_no, 'merchant', v_merchant.merchant_id, p_terminal_no, p_algorithm, p_material, p_at - interval '5 minutes', not_after);
    UPDATE api_key k SET not_after = least(k.not_after, p_at + p_overlap) WHERE k.serial_no = p_old_serial_no
    RETURNING k.not_after INTO old_not_after;
    INSERT INTO key_change (serial_no, verb, old_serial_no, changed_by, changed_at)
    VALUES (p_serial_no, CASE WHEN p_old_serial_no IS NULL THEN 'ISSUE' ELSE 'ROTATE' END, p_old_serial_no, p_by, p_at);
END $$;

-- A merchant's own new public key, RSA, for the terminal whose key asks. The only way in which a till's service writes keys.
CREATE FUNCTION register_own_key(p_old_serial_no text, p_serial_no text, p_material bytea, p_at timestamptz,
                                 OUT outcome text, OUT not_after timestamptz, OUT old_not_after timestamptz)
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT a.* FROM add_terminal_key((SELECT k.terminal_no FROM api_key k WHERE k.serial_no = p_old_serial_no AND k.holder_kind = 'merchant'),
        p_old_serial_no, p_serial_no, 'RSA-2048-SHA256', p_material, NULL, interval '7 days', interval '365 days', p_at) a
$$;

SELECT make_append_only(t) FROM unnest(ARRAY['register_load', 'standing_change', 'key_change']::regclass[]) AS t;

GRANT SELECT ON register_load, business, forger_listing, merchant_application, merchant_paper, store, standing_change, key_change
   TO hanquan_operator, hanquan_auditor;
GRANT SELECT ON store TO hanquan_issuer, hanquan_redemption, hanquan_finance;
GRANT SELECT ON standing_change TO hanquan_redemption;
GRANT INSERT ON register_load, business, forger_listing, merchant_application, merchant_paper, store, standing_change, key_change
   TO hanquan_operator;
GRANT UPDATE ON business, forger_listing, merchant_application TO hanquan_operator;
GRANT UPDATE (is_live) ON merchant_paper TO hanquan_operator;
GRANT UPDATE (suspended) ON store TO hanquan_operator;
GRANT UPDATE (suspended_until) ON merchant TO hanquan_operator;
GRANT EXECUTE ON FUNCTION add_terminal_key TO hanquan_operator;
GRANT EXECUTE ON FUNCTION register_own_key TO hanquan_redemption;

-- ---------------------------------------------------------------- retention and privacy

-- How long what is kept. What each family is, and why: docs/privacy.md. Days count from the moment that is named there.
CREATE TABLE retention_rule (
    family      text PRIMARY KEY CHECK (family ~ '^[a-z_]{4,30}$'),
    keep_days   integer NOT NULL CHECK (keep_days <= 36500),
    least_days  integer NOT NULL CHECK (least_days >= 0),
    changed_by  staff_name,
    changed_at  timestamptz,
    CONSTRAINT not_too_short CHECK (keep_days >= least_days)
);
COMMENT ON COLUMN retention_rule.least_days IS 'Below this something that still runs would miss it.';
INSERT INTO retention_rule (family, keep_days, least_days) VALUES
    ('claim_keys', 7, 1), ('signals', 30, 7), ('cases', 180, 31), ('callbacks', 30, 1), ('dead_letters', 90, 7),
    ('round_storage', 180, 14), ('person_link', 1095, 60);

-- What retention did to a round, once each. A step that was begun and has no end is taken up again by the next run.
CREATE TABLE retention_step (
    round_no      smallint NOT NULL REFERENCES round,
    step          text NOT NULL CHECK (step IN ('CLAIM_KEYS', 'PACK', 'ARCHIVE', 'NUMBERS', 'UNLINK')),
    part          text NOT NULL DEFAULT '',
    begun_at      timestamptz NOT NULL,
    done_at       timestamptz,
    done_by       staff_name NOT NULL,
    items         bigint NOT NULL DEFAULT 0,
    bytes_before  bigint,
    bytes_after   bigint,
    sha256        bytea CHECK (length(sha256) = 32),
    PRIMARY KEY (round_no, step, part)
);
COMMENT ON COLUMN retention_step.part IS 'The table that was packed; empty for the other steps.';
COMMENT ON COLUMN retention_step.sha256 IS 'Of the list of files that the round was exported to, where that was asked for.';

CREATE TABLE erasure (
    erasure_no   bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    person_hash  bytea NOT NULL CHECK (length(person_hash) = 32),
    removed      jsonb NOT NULL,
    kept         jsonb NOT NULL,
    asked_by     staff_name NOT NULL,
    why          text NOT NULL CHECK (length(why) BETWEEN 1 AND 500),
    erased_at    timestamptz NOT NULL
);
CREATE INDEX erasure_person ON erasure (person_hash);
COMMENT ON COLUMN erasure.person_hash IS 'HMAC-SHA256 of the token under the master key: whoever asks again is recognised, and nobody can be read out of it.';

-- When a round is over for good: the last voucher of its campaign has run out.
CREATE VIEW round_end AS
    SELECT d.round_no, d.campaign_no, c.campaign_id, d.round_id, d.closes_at, e.campaign_ends_at
      FROM round d JOIN campaign c USING (campaign_no)
      JOIN (SELECT r.campaign_no, max(greatest(r.closes_at, s.valid_until)) AS campaign_ends_at
              FROM round r LEFT JOIN stock s USING (round_no) GROUP BY r.campaign_no) e USING (campaign_no);

-- archive: rounds whose storage was detached, in tables of the same names, still guarded.
-- books: everything there ever was, in views of the same names, so that whoever puts books before public in the
-- search path (the audit does: read_books) reads old rounds and new ones with the same queries.
CREATE SCHEMA archive;
CREATE SCHEMA books;

-- Tables that are partitioned by round; those that refer to another come first.
CREATE FUNCTION round_tables() RETURNS SETOF text
    LANGUAGE sql STABLE AS $$
    SELECT c.relname::text FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'voucher_id'
     WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'p' ORDER BY c.oid DESC $$;

-- Services keep the plans that they made for a round's tables. Of a table that is empty, or nearly, PostgreSQL believes
-- that reading any of its indexes costs the same, so such a plan may read all of it for each voucher (ADR 22).
CREATE FUNCTION analyze_young() RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET lock_timeout = '50ms' AS $$
DECLARE
    v_table  regclass;
    v_count  integer := 0;
BEGIN
    FOR v_table IN SELECT c.oid FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                    WHERE i.inhparent IN (SELECT to_regclass('public.' || t) FROM round_tables() t)
                      AND c.relkind = 'r' AND c.reltuples >= 0 AND c.relpages < 1000 -- autovacuum sees to larger ones
                      AND pg_relation_size(c.oid) > 4 * 8192 * c.relpages::bigint LOOP
        BEGIN
            EXECUTE format('ANALYZE %s', v_table);
            v_count := v_count + 1;
        EXCEPTION WHEN lock_not_available THEN NULL; -- somebody is at it
        END;
    END LOOP;
    RETURN v_count;
END $$;
COMMENT ON FUNCTION analyze_young IS 'Counts small tables of rounds that have grown a lot since they were last counted, so that plans for them are made anew. How many there were.';

-- Tables with rows of all rounds in one, that follow a round into the archive by themselves.
CREATE FUNCTION round_lists() RETURNS SETOF text
    LANGUAGE sql STABLE AS $$
    SELECT t FROM unnest(ARRAY['request_number', 'person_use']) t WHERE to_regclass('public.' || t) IS NOT NULL $$;

-- Makes archive and books as the tables stand now; a migration that changes one of them calls it again, with the archive
-- changed alike.
CREATE FUNCTION renew_books() RETURNS void
    LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    v_table   text;
    v_is_part boolean;
    v_columns text;
    v_posting text := pg_get_viewdef('posting'::regclass);
BEGIN
    DROP VIEW IF EXISTS books.posting;
    FOR v_table, v_is_part IN SELECT t, true FROM round_tables() t UNION ALL SELECT t, false FROM round_lists() t LOOP
        IF to_regclass('archive.' || v_table) IS NULL THEN
            EXECUTE format('CREATE TABLE archive.%1$I (LIKE public.%1$I INCLUDING CONSTRAINTS)%2$s', v_table,
                           CASE WHEN v_is_part THEN ' PARTITION BY RANGE (voucher_id)' ELSE '' END);
            PERFORM make_append_only(('archive.' || v_table)::regclass) WHERE v_is_part;
        END IF;
        v_columns := (SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
                       WHERE attrelid = ('public.' || v_table)::regclass AND attnum > 0 AND NOT attisdropped);
        EXECUTE format('DROP VIEW IF EXISTS books.%I', v_table);
        EXECUTE format('CREATE VIEW books.%1$I AS SELECT %2$s FROM public.%1$I UNION ALL SELECT %2$s FROM archive.%1$I', v_table, v_columns);
    END LOOP;
    PERFORM set_config('search_path', 'books, public, pg_temp', true);
    EXECUTE 'CREATE VIEW books.posting AS ' || v_posting;
    GRANT USAGE ON SCHEMA books TO hanquan_auditor, hanquan_finance, hanquan_custodian;
    GRANT SELECT ON ALL TABLES IN SCHEMA books TO hanquan_auditor, hanquan_finance, hanquan_custodian;
END $$;
SELECT renew_books();

-- Until the transaction ends whoever calls it reads old rounds with the new ones, and no round is moved meanwhile (lock 4824).
CREATE FUNCTION read_books() RETURNS text
    LANGUAGE sql AS $$
    SELECT pg_advisory_xact_lock_shared(4824);
    SELECT set_config('search_path', 'books, public', true) $$;

CREATE FUNCTION keep_until(p_family text, p_from timestamptz) RETURNS timestamptz
    LANGUAGE sql STABLE AS $$ SELECT p_from + make_interval(days => keep_days) FROM retention_rule WHERE family = p_family $$;

CREATE FUNCTION is_step_done(p_round_no smallint, p_step text) RETURNS boolean
    LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM retention_step t WHERE t.round_no = p_round_no AND t.step = p_step AND t.done_at IS NOT NULL) $$;

CREATE FUNCTION first_id(p_round_no integer) RETURNS bigint
    LANGUAGE sql IMMUTABLE AS $$ SELECT p_round_no::bigint << 38 $$;

-- Why the storage of a round cannot be detached now; null when it can.
CREATE FUNCTION archive_blocked_by(p_round_no smallint, p_at timestamptz) RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT CASE
        WHEN p_at < keep_until('round_storage', e.campaign_ends_at) THEN format('kept until %s', keep_until('round_storage', e.campaign_ends_at))
        WHEN NOT is_step_done(p_round_no, 'CLAIM_KEYS') THEN 'its claim keys are still in the claim store'
        WHEN EXISTS (SELECT FROM balance b WHERE b.campaign_no = e.campaign_no AND b.kind = 'ISSUED' AND b.balance_fen <> 0)
            THEN 'vouchers that ran out are not booked as expired: settle expire'
        WHEN EXISTS (SELECT FROM balance b WHERE b.campaign_no = e.campaign_no AND b.kind = 'SETTLING' AND b.balance_fen <> 0)
            THEN 'the bank has not answered a settlement'
        WHEN EXISTS (SELECT FROM open_day_posting p WHERE p.campaign_no = e.campaign_no) THEN 'a day of it is not closed'
        WHEN EXISTS (SELECT FROM callback_expiry x JOIN stock s USING (stock_no) WHERE s.round_no = p_round_no AND x.unfolded_at IS NULL)
          OR EXISTS (SELECT FROM city, generate_series(0, buckets - 1) b JOIN callback_event c ON c.bucket = b
                       AND c.voucher_id >= first_id(p_round_no) AND c.voucher_id < first_id(p_round_no + 1) WHERE c.next_at IS NOT NULL)
            THEN 'callbacks wait to be sent' END
      FROM round_end e WHERE e.round_no = p_round_no
$$;

-- Says of the partitions of a round what they hold, so that moving them reads no row. First without a look (is_checked
-- false), which takes a moment's lock; then, in a transaction of its own, with one.
CREATE FUNCTION bound_round(p_round_no smallint, p_is_checked boolean) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET lock_timeout = '300ms' AS $$
DECLARE
    v_table text;
BEGIN
    FOR v_table IN SELECT t || '_r' || p_round_no FROM round_tables() t ORDER BY to_regclass('public.' || t)::oid LOOP
        IF p_is_checked THEN
            EXECUTE format('ALTER TABLE %I VALIDATE CONSTRAINT round_range', v_table);
        ELSE
            EXECUTE format('ALTER TABLE %I DROP CONSTRAINT IF EXISTS round_range', v_table);
            EXECUTE format('ALTER TABLE %I ADD CONSTRAINT round_range CHECK (voucher_id >= %s AND voucher_id < %s) NOT VALID',
                           v_table, first_id(p_round_no), first_id(p_round_no + 1));
        END IF;
    END LOOP;
END $$;

-- Puts a table into its place in the archive.
CREATE FUNCTION attach_to_archive(p_table text, p_round_no smallint) RETURNS void
    LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    EXECUTE format('ALTER TABLE archive.%I ATTACH PARTITION archive.%I FOR VALUES FROM (%s) TO (%s)', p_table,
                   p_table || '_r' || p_round_no, first_id(p_round_no), first_id(p_round_no + 1));
    EXECUTE format('ALTER TABLE archive.%I DROP CONSTRAINT IF EXISTS round_range', p_table || '_r' || p_round_no);
END $$;

-- Detaches the storage of a round and puts it into the archive, all its tables at once and without reading a row: no till
-- ever sees one of them without the others. Gives up after 300 ms of waiting for anybody; ask again then.
-- refusal is null when it worked, 'REPLAYED' when it was done before.
CREATE FUNCTION archive_round(p_round_no smallint, p_by text, p_at timestamptz, p_sha256 bytea, OUT refusal text, OUT items bigint)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET lock_timeout = '300ms' AS $$
DECLARE
    v_table text;
    v_part  text;
    v_key   text;
    v_bytes bigint := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(4824);
    refusal := CASE WHEN is_step_done(p_round_no, 'ARCHIVE') THEN 'REPLAYED' ELSE archive_blocked_by(p_round_no, p_at) END;
    IF refusal IS NOT NULL THEN
        RETURN;
    END IF;
    items := 0;
    FOR v_table IN SELECT t FROM round_tables() t ORDER BY to_regclass('public.' || t)::oid LOOP -- in the order in which tills take them
        EXECUTE format('LOCK TABLE ONLY public.%I IN ACCESS EXCLUSIVE MODE', v_table);
    END LOOP;
    FOR v_table IN SELECT round_tables() LOOP
        v_part := v_table || '_r' || p_round_no;
        items := items + greatest((SELECT c.reltuples FROM pg_class c WHERE c.oid = v_part::regclass)::bigint, 0);
        v_bytes := v_bytes + pg_total_relation_size(v_part::regclass);
        EXECUTE format('ALTER TABLE public.%I DETACH PARTITION public.%I', v_table, v_part);
        FOR v_key IN SELECT conname FROM pg_constraint WHERE conrelid = v_part::regclass AND contype = 'f' AND conparentid = 0 LOOP
            EXECUTE format('ALTER TABLE public.%I DROP CONSTRAINT %I', v_part, v_key);
        END LOOP;
        EXECUTE format('ALTER TABLE public.%I SET SCHEMA archive', v_part);
        PERFORM attach_to_archive(v_table, p_round_no);
    END LOOP;
    INSERT INTO retention_step (round_no, step, begun_at, done_at, done_by, items, bytes_before, bytes_after, sha256)
    VALUES (p_round_no, 'ARCHIVE', p_at, p_at, p_by, items, v_bytes, v_bytes, p_sha256);
END $$;

-- Moves a page of the tills' numbers of an archived round after it. last: where the next page begins, null at the end.
CREATE FUNCTION archive_numbers(p_round_no smallint, p_bucket smallint, p_after uuid, p_limit integer, OUT last uuid, OUT moved bigint)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF NOT is_step_done(p_round_no, 'ARCHIVE') THEN
        RAISE EXCEPTION 'round % is not archived', p_round_no USING ERRCODE = 'HQ002';
    END IF;
    SELECT p.request_key INTO last
      FROM (SELECT n.request_key FROM request_number n WHERE n.bucket = p_bucket AND n.request_key > p_after
             ORDER BY n.request_key LIMIT p_limit) p ORDER BY p.request_key DESC LIMIT 1;
    WITH gone AS (
        DELETE FROM request_number n WHERE n.bucket = p_bucket AND n.request_key > p_after AND n.request_key <= last
           AND n.voucher_id >= first_id(p_round_no) AND n.voucher_id < first_id(p_round_no + 1) RETURNING n.*
    ), kept AS (
        INSERT INTO archive.request_number SELECT * FROM gone RETURNING 1
    )
    SELECT count(*) INTO moved FROM kept;
END $$;

-- Moves what caps counted of an archived round after it, at once: only campaigns with caps have any.
CREATE FUNCTION archive_person_use(p_round_no smallint) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF NOT is_step_done(p_round_no, 'ARCHIVE') THEN
        RAISE EXCEPTION 'round % is not archived', p_round_no USING ERRCODE = 'HQ002';
    END IF;
    WITH gone AS (
        DELETE FROM person_use u WHERE u.voucher_id >= first_id(p_round_no) AND u.voucher_id < first_id(p_round_no + 1) RETURNING u.*
    )
    INSERT INTO archive.person_use SELECT * FROM gone;
END $$;

-- The columns of a table of rounds as an unlinked one has them: tokens and numbers that somebody outside knows are put
-- through a hash with a salt ($1) that nobody keeps. What was equal stays equal within the round, so that every limit and
-- every number can still be recounted.
CREATE FUNCTION unlinked_columns(p_table text) RETURNS text
    LANGUAGE sql STABLE SET search_path = public, pg_temp AS $$
    SELECT string_agg(CASE
             WHEN atttypid = 'uuid'::regtype THEN format('encode(substr(sha256($1 || uuid_send(%1$I)), 1, 16), ''hex'')::uuid', attname)
             WHEN atttypid = 'text'::regtype AND attname LIKE '%\_no' THEN
                 format('encode(substr(sha256($1 || convert_to(%1$I, ''UTF8'')), 1, 16), ''hex'')', attname)
             WHEN atttypid = 'integer'::regtype AND attname LIKE '%\_key' THEN
                 format('(''x'' || encode(substr(sha256($1 || int4send(%1$I)), 1, 4), ''hex''))::bit(32)::integer', attname)
             ELSE quote_ident(attname) END, ', ' ORDER BY attnum)
      FROM pg_attribute WHERE attrelid = p_table::regclass AND attnum > 0 AND NOT attisdropped
$$;

-- Ends the link between the rows of an archived round and the people they were about. Every row stays, with its money, its
-- voucher's number and its time. refusal as for archive_round.
CREATE FUNCTION unlink_round(p_round_no smallint, p_by text, p_at timestamptz, OUT refusal text, OUT items bigint)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET lock_timeout = '300ms' AS $$
DECLARE
    v_salt   bytea := uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid());
    v_table  text;
    v_part   text;
    v_was    bigint;
    v_is     bigint;
    v_before bigint := 0;
    v_after  bigint := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(4824);
    refusal := (SELECT CASE WHEN is_step_done(p_round_no, 'UNLINK') THEN 'REPLAYED'
                            WHEN NOT is_step_done(p_round_no, 'NUMBERS') THEN 'it is not in the archive with its numbers'
                            WHEN p_at < keep_until('person_link', e.campaign_ends_at) THEN format('kept until %s', keep_until('person_link', e.campaign_ends_at)) END
                  FROM round_end e WHERE e.round_no = p_round_no);
    IF refusal IS NOT NULL THEN
        RETURN;
    END IF;
    items := 0;
    FOR v_table IN SELECT round_tables() LOOP
        v_part := v_table || '_r' || p_round_no;
        v_before := v_before + pg_total_relation_size(('archive.' || v_part)::regclass);
        EXECUTE format('CREATE TABLE archive.unlinked (LIKE archive.%I INCLUDING CONSTRAINTS INCLUDING DEFAULTS)', v_part);
        EXECUTE format('INSERT INTO archive.unlinked SELECT %s FROM archive.%I ORDER BY voucher_id', unlinked_columns('archive.' || v_part), v_part)
          USING v_salt;
        GET DIAGNOSTICS v_is = ROW_COUNT;
        EXECUTE format('SELECT count(*) FROM archive.%I', v_part) INTO v_was;
        IF v_is <> v_was THEN
            RAISE EXCEPTION 'archive.% has % rows, its copy %', v_part, v_was, v_is USING ERRCODE = 'HQ002';
        END IF;
        EXECUTE format('DROP TABLE archive.%I', v_part);
        EXECUTE format('ALTER TABLE archive.unlinked RENAME TO %I', v_part);
        EXECUTE format('ALTER TABLE archive.%I ADD CONSTRAINT round_range CHECK (voucher_id >= %s AND voucher_id < %s)', v_part,
                       first_id(p_round_no), first_id(p_round_no + 1));
        EXECUTE format('CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON archive.%I FOR EACH STATEMENT EXECUTE FUNCTION forbid_change()', v_part);
        PERFORM attach_to_archive(v_table, p_round_no);
        v_after := v_after + pg_total_relation_size(('archive.' || v_part)::regclass);
        items := items + v_is;
    END LOOP;
    UPDATE request_clash c SET out_request_no = encode(substr(sha256(v_salt || convert_to(c.out_request_no, 'UTF8')), 1, 16), 'hex')
     WHERE c.first_voucher >= first_id(p_round_no) AND c.first_voucher < first_id(p_round_no + 1);
    DELETE FROM archive.request_number n WHERE n.voucher_id >= first_id(p_round_no) AND n.voucher_id < first_id(p_round_no + 1);
    UPDATE archive.person_use u SET person_hash = 0 WHERE u.voucher_id >= first_id(p_round_no) AND u.voucher_id < first_id(p_round_no + 1);
    INSERT INTO retention_step (round_no, step, begun_at, done_at, done_by, items, bytes_before, bytes_after)
    VALUES (p_round_no, 'UNLINK', p_at, p_at, p_by, items, v_before, v_after);
END $$;

-- Writes down that a step which is not the database's own was begun, and that it was done. A step is begun before
-- anything is removed: a claim store that is rebuilt meanwhile must not bring it back.
CREATE FUNCTION begin_step(p_round_no smallint, p_step text, p_part text, p_by text, p_at timestamptz) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF p_step NOT IN ('CLAIM_KEYS', 'PACK', 'NUMBERS') OR p_at < (SELECT d.closes_at FROM round d WHERE d.round_no = p_round_no) THEN
        RAISE EXCEPTION 'round %: % cannot begin', p_round_no, p_step USING ERRCODE = 'HQ002';
    END IF;
    INSERT INTO retention_step (round_no, step, part, begun_at, done_by) VALUES (p_round_no, p_step, p_part, p_at, p_by) ON CONFLICT DO NOTHING;
END $$;

CREATE FUNCTION end_step(p_round_no smallint, p_step text, p_part text, p_at timestamptz, p_items bigint, p_before bigint, p_after bigint) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    UPDATE retention_step t SET done_at = p_at, items = p_items, bytes_before = p_before, bytes_after = p_after
     WHERE t.round_no = p_round_no AND t.step = p_step AND t.part = p_part AND t.done_at IS NULL
       AND t.step IN ('CLAIM_KEYS', 'PACK', 'NUMBERS')
$$;

-- Everything that the books and the lists beside them hold about a person, as it stands there: the table, and the row.
-- p_vouchers are the person's (person_vouchers). Whatever table has a column named person is asked, and whatever names vouchers,
-- but for the hashes of tills' numbers, which say no more than the rows that they stand for.
CREATE FUNCTION person_rows(p_person uuid, p_bucket smallint, p_vouchers bigint[]) RETURNS TABLE (place text, item jsonb)
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_column text;
BEGIN
    FOR place IN SELECT round_tables() ORDER BY 1 DESC LOOP
        RETURN QUERY EXECUTE format('SELECT %L, to_jsonb(t) FROM books.%I t WHERE t.bucket = $1 AND t.voucher_id = ANY ($2) ORDER BY t.voucher_id', place, place)
            USING p_bucket, p_vouchers;
    END LOOP;
    FOR place, v_column IN SELECT c.relname, a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
                  WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND NOT c.relispartition AND c.relname <> 'request_number'
                    AND (a.attname = 'person' AND a.atttypid = 'uuid'::regtype OR a.attname = 'voucher_id') ORDER BY 1 LOOP
        RETURN QUERY EXECUTE format('SELECT %L, to_jsonb(t) FROM %I.%I t WHERE %s', place,
                CASE WHEN place IN (SELECT round_lists()) THEN 'books' ELSE 'public' END, place,
                CASE v_column WHEN 'person' THEN 't.person = $1' ELSE 't.bucket = $2 AND t.voucher_id = ANY ($3)' END)
            USING p_person, p_bucket, p_vouchers;
    END LOOP;
    RETURN QUERY SELECT 'flag', to_jsonb(f) FROM flag f WHERE f.subject_kind = 'person' AND f.subject = p_person::text;
    RETURN QUERY SELECT 'request_clash', to_jsonb(c) FROM request_clash c
                  WHERE c.first_voucher = ANY (p_vouchers) OR c.second_voucher = ANY (p_vouchers);
END $$;

CREATE FUNCTION person_vouchers(p_person uuid, p_bucket smallint, p_partition integer) RETURNS SETOF bigint
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT v.voucher_id FROM round d
      JOIN books.voucher v ON v.bucket = p_bucket AND v.voucher_id >= first_id(d.round_no) + (p_partition::bigint << 28)
                                                  AND v.voucher_id < first_id(d.round_no) + ((p_partition::bigint + 1) << 28)
     WHERE v.person = p_person ORDER BY 1
$$;

SELECT make_append_only('erasure'::regclass);

REVOKE EXECUTE ON FUNCTION round_tables, analyze_young, round_lists, renew_books, read_books, keep_until, is_step_done, first_id, archive_blocked_by, bound_round,
    attach_to_archive, archive_round, archive_numbers, archive_person_use, unlinked_columns, unlink_round, begin_step, end_step, person_rows,
    person_vouchers FROM PUBLIC;

GRANT USAGE ON SCHEMA archive TO hanquan_auditor;
GRANT SELECT ON retention_rule, retention_step, erasure, round_end TO hanquan_custodian, hanquan_auditor, hanquan_finance, hanquan_operator;
GRANT SELECT ON retention_step TO hanquan_issuer;
GRANT UPDATE (keep_days, changed_by, changed_at) ON retention_rule TO hanquan_custodian;
GRANT INSERT ON erasure TO hanquan_custodian;
GRANT EXECUTE ON FUNCTION keep_until, is_step_done, first_id, round_tables TO hanquan_custodian, hanquan_auditor;
GRANT EXECUTE ON FUNCTION read_books TO hanquan_auditor, hanquan_custodian, hanquan_finance;
GRANT EXECUTE ON FUNCTION archive_blocked_by, bound_round, archive_round, archive_numbers, archive_person_use, unlink_round, begin_step, end_step, person_rows,
    person_vouchers TO hanquan_custodian;

-- ---------------------------------------------------------------- who may do what

REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO hanquan_issuer, hanquan_redemption, hanquan_finance, hanquan_antifraud, hanquan_operator, hanquan_auditor;
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA public FROM PUBLIC;

GRANT SELECT ON ALL TABLES IN SCHEMA public TO hanquan_auditor;
REVOKE SELECT ON api_key, callback_key FROM hanquan_auditor;

GRANT SELECT ON city, partner, merchant, terminal, campaign, round, stock, claim_group, pack, pack_item, release_stage
   TO hanquan_issuer, hanquan_redemption, hanquan_finance, hanquan_antifraud, hanquan_operator;
GRANT SELECT ON api_key TO hanquan_issuer, hanquan_redemption, hanquan_operator;

GRANT SELECT, INSERT ON voucher, request_clash, transfer TO hanquan_issuer;
GRANT SELECT, INSERT, UPDATE ON drain_position TO hanquan_issuer;
GRANT SELECT, INSERT, UPDATE ON stock_issued TO hanquan_issuer;
GRANT SELECT ON stock_issued TO hanquan_finance, hanquan_operator;
GRANT SELECT ON redemption, refund, account TO hanquan_issuer;

GRANT SELECT ON voucher, transfer, day_close, account, merchant_day, merchant_held TO hanquan_redemption;
GRANT SELECT, INSERT ON redemption, refund TO hanquan_redemption;
GRANT SELECT, INSERT ON request_number TO hanquan_redemption;
GRANT SELECT ON redeem_cap TO hanquan_auditor, hanquan_redemption, hanquan_issuer, hanquan_operator, hanquan_finance;
GRANT INSERT ON redeem_cap TO hanquan_operator;
GRANT SELECT ON hold, hold_end, offline_use, person_use TO hanquan_auditor, hanquan_finance;
GRANT SELECT ON hold, hold_end TO hanquan_issuer;
GRANT SELECT, INSERT ON hold, hold_end, offline_use, person_use TO hanquan_redemption;
GRANT EXECUTE ON FUNCTION number_hash, person_hash, is_use_live, cap_broken, is_use_taken, is_hold_taken, is_order_taken, taken_numbers,
    register_numbers, find_numbers, redeem_batch, end_holds, refund_batch, expired_stocks, tell_partners, analyze_young,
    below_id TO hanquan_redemption;
GRANT EXECUTE ON FUNCTION number_hash TO hanquan_issuer, hanquan_finance, hanquan_operator, hanquan_auditor;
GRANT EXECUTE ON FUNCTION refund_room_fen, lock_bucket, first_open_day, is_stock_expired TO hanquan_redemption;

GRANT SELECT ON voucher, redemption, refund, day_close, account, merchant_day, merchant_hold, merchant_hold_release,
                merchant_held, posting, open_day_posting, balance, drain_position TO hanquan_finance, hanquan_operator;
GRANT SELECT, INSERT ON transfer TO hanquan_finance, hanquan_operator;
GRANT EXECUTE ON FUNCTION close_day, expire_stock, lock_bucket TO hanquan_finance;
GRANT EXECUTE ON FUNCTION refresh_statistics TO hanquan_finance, hanquan_auditor;
GRANT INSERT ON merchant_hold_release TO hanquan_finance;

GRANT INSERT ON city, partner, campaign, round, stock, claim_group, pack, pack_item, release_stage, merchant, terminal, api_key TO hanquan_operator;
GRANT UPDATE (claims_per_s_max) ON partner TO hanquan_operator;
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

-- The custodian reads what it needs for retention and for what people ask, and deletes from three tables beside the ledger.
GRANT USAGE ON SCHEMA public TO hanquan_custodian;
GRANT SELECT ON city, campaign, round, stock, pack, partner, merchant, terminal, stock_issued, drain_position, request_number,
                flag, person_block, callback_event, callback_expiry TO hanquan_custodian;
GRANT DELETE ON flag, person_block, callback_event TO hanquan_custodian;
GRANT EXECUTE ON FUNCTION account_bucket, account_merchant TO hanquan_custodian;
