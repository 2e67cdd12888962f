-- Limits beside the one per partner, packs of several vouchers, staged release, grants to a list; and how many
-- vouchers of each stock are in the books, kept by the drain, so that nobody has to count them.

ALTER TABLE campaign ADD face_fen_per_person_max bigint CHECK (face_fen_per_person_max > 0);
COMMENT ON COLUMN campaign.face_fen_per_person_max IS 'Face of all vouchers that one person may claim in the whole campaign; none when null.';

ALTER TABLE round ADD per_person_limit smallint CHECK (per_person_limit BETWEEN 1 AND 99);
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

ALTER TABLE stock ADD group_no smallint, ADD is_granted boolean NOT NULL DEFAULT false,
    ADD FOREIGN KEY (round_no, group_no) REFERENCES claim_group;
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

CREATE TABLE release_stage (
    round_no  smallint NOT NULL REFERENCES round,
    after_s   integer NOT NULL CHECK (after_s >= 0),
    share_bp  smallint NOT NULL CHECK (share_bp BETWEEN 1 AND 10000),
    PRIMARY KEY (round_no, after_s)
);
COMMENT ON TABLE release_stage IS 'So much of each stock can be claimed from so many seconds after the opening on; a round without rows releases all at once.';

ALTER TABLE voucher ADD pack_no integer;
COMMENT ON COLUMN voucher.pack_no IS 'The pack it came in; null when it was claimed by itself.';

CREATE TABLE stock_issued (
    stock_no  integer NOT NULL REFERENCES stock,
    shard     smallint NOT NULL,
    issued    bigint NOT NULL CHECK (issued > 0),
    PRIMARY KEY (stock_no, shard)
);
COMMENT ON TABLE stock_issued IS 'Vouchers in the books, moved in the transaction that adds them; the audit counts after it.';

INSERT INTO stock_issued SELECT stock_no, (((voucher_id >> 28) & 1023) * (SELECT shards FROM city) / 1024)::smallint, count(*)
  FROM voucher GROUP BY 1, 2;

-- Whoever keeps the catalogue in memory reads it again at once: a pause, or stock that returns, must not wait.
CREATE FUNCTION tell_of_stock() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NOTIFY hanquan_stock;
    RETURN NULL;
END $$;
CREATE TRIGGER tell_of_stock AFTER UPDATE ON stock FOR EACH STATEMENT EXECUTE FUNCTION tell_of_stock();

SELECT make_append_only(t) FROM unnest(ARRAY['claim_group', 'pack', 'pack_item', 'release_stage']::regclass[]) AS t;

GRANT SELECT ON claim_group, pack, pack_item, release_stage, stock_issued TO hanquan_auditor;
GRANT SELECT ON claim_group, pack, pack_item, release_stage
   TO hanquan_issuer, hanquan_redemption, hanquan_finance, hanquan_antifraud, hanquan_operator;
GRANT SELECT, INSERT, UPDATE ON stock_issued TO hanquan_issuer;
GRANT SELECT ON stock_issued TO hanquan_finance, hanquan_operator;
GRANT INSERT ON claim_group, pack, pack_item, release_stage TO hanquan_operator;
REVOKE EXECUTE ON FUNCTION tell_of_stock FROM PUBLIC;
