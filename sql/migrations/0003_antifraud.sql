-- Anti-fraud: flags with their reasons, people refused for a while, and how far the signals are read.

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
