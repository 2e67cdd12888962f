-- Merchants: how a shop gets in, what papers it shows, its stores, terminals and keys, and what stops it.

ALTER TABLE merchant ADD suspended_until timestamptz, ADD CHECK (suspended OR suspended_until IS NULL);
COMMENT ON COLUMN merchant.suspended_until IS 'When a suspension ends by itself; null: when somebody resumes it.';
ALTER TABLE terminal ADD store_no integer;

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

REVOKE EXECUTE ON FUNCTION tell_of_merchant, add_terminal_key, register_own_key FROM PUBLIC;
