-- Offers as data: validity in days from the claim, scope by district and merchant, stacking, codes that change each
-- minute, a third refund policy; and what categories are called, for the words at the till.

ALTER TABLE stock
    DROP CONSTRAINT stock_refund_policy_check,
    ADD CONSTRAINT stock_refund_policy_check CHECK (refund_policy IN ('RESTORE', 'RETURN_TO_BUDGET', 'PAID_SHARE')),
    ADD valid_days smallint CHECK (valid_days BETWEEN 1 AND 366),
    ADD stacks_with text[] NOT NULL DEFAULT '{SHOP,PLATFORM}' CHECK (stacks_with <@ '{SHOP,PLATFORM}'),
    ADD till_code text NOT NULL DEFAULT 'ANY' CHECK (till_code IN ('ANY', 'ROTATING'));
COMMENT ON COLUMN stock.valid_until IS 'The last moment for every voucher of the stock; its money expires after it, whenever single vouchers ended.';
COMMENT ON COLUMN stock.valid_days IS 'A voucher ends with so many days from its claim on, that day being the first (voucher_end); none when null.';
COMMENT ON COLUMN stock.stacks_with IS 'Whose reductions may be on the payment already.';
COMMENT ON COLUMN stock.till_code IS 'ROTATING: only with the code that the phone shows anew each minute.';

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
