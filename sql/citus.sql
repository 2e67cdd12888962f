-- Hanquan on Citus: what lies where when the books are spread over several machines (docs/citus.md).
--
-- Run once, as a superuser on the coordinator, in one transaction, after the migrations and before the first round is
-- loaded; Citus must know the coordinator and the workers. Everything that a till touches lies with its bucket on
-- one node, and a till's transaction runs there, whole. What the offices touch stays on the coordinator.
--
--   by bucket, together   vouchers, redemptions, refunds, holds, numbers, outbox: every table with a bucket, but
--   on the coordinator    the offices' own: accounts and transfers, closed days folded by merchant, settlement
--   on every node         what tills read and offices write: stocks, rounds, caps, closed days
--
-- Tried with Citus 14.0 on PostgreSQL 18. Older PostgreSQL plans SQL functions in a way that Citus cannot follow.

SET LOCAL client_min_messages = warning;
SET LOCAL citus.enable_unsafe_triggers = on;  -- ours only refuse
SET LOCAL citus.multi_shard_modify_mode = 'sequential'; -- else one transaction cannot make them all

-- Rounds are opened later, and their tables get the trigger that refuses changes, too. And shards are not hidden: drivers
-- ask the catalogue for types on every new connection, and hiding makes that a matter of seconds.
DO $$ BEGIN
    EXECUTE format('ALTER DATABASE %I SET citus.enable_unsafe_triggers = on', current_database());
    EXECUTE format('ALTER DATABASE %I SET citus.show_shards_for_app_name_prefixes = %L', current_database(), '*');
END $$;

-- ---------------------------------------------------------------- on every node

-- A transaction on several nodes cannot NOTIFY. Services see a change of a stock when they next look, within a second.
DROP TRIGGER tell_of_stock ON stock;

-- The one thing that tills ask of a merchant. The merchant's own row stays where rights by column are kept: who changes
-- a table that lies on every node needs UPDATE on the whole of it.
CREATE TABLE merchant_debt (
    merchant_no          integer PRIMARY KEY,
    refund_debt_fen_max  bigint NOT NULL
);
INSERT INTO merchant_debt SELECT merchant_no, refund_debt_fen_max FROM merchant;

SELECT create_reference_table(t) FROM unnest(ARRAY['round', 'stock', 'merchant_debt', 'callback_subscription', 'day_close', 'redeem_cap'])
    WITH ORDINALITY AS x(t, n) WHERE to_regclass(t) IS NOT NULL ORDER BY n;
GRANT UPDATE ON callback_subscription TO hanquan_operator; -- every column but the key was theirs to change

CREATE FUNCTION copy_debt() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO merchant_debt (merchant_no, refund_debt_fen_max) VALUES (NEW.merchant_no, NEW.refund_debt_fen_max)
    ON CONFLICT (merchant_no) DO UPDATE SET refund_debt_fen_max = excluded.refund_debt_fen_max;
    RETURN NULL;
END $$;
CREATE TRIGGER copy_debt AFTER INSERT OR UPDATE OF refund_debt_fen_max ON merchant FOR EACH ROW EXECUTE FUNCTION copy_debt();

-- ---------------------------------------------------------------- by bucket

-- Whose turn it is in a bucket: a row that is locked on the bucket's own node. An advisory lock would hold on
-- the node that happens to ask, and a till and an office ask on different ones.
CREATE TABLE bucket_turn (bucket smallint PRIMARY KEY);
INSERT INTO bucket_turn SELECT generate_series(0, 1023);

-- What a till must know of the offices' tables, copied to where it looks.
CREATE TABLE bucket_expiry (
    bucket     smallint NOT NULL,
    kind       transfer_kind NOT NULL,
    reference  text NOT NULL,
    PRIMARY KEY (bucket, reference)
);
CREATE TABLE bucket_payable (
    bucket       smallint NOT NULL,
    campaign_no  smallint NOT NULL,
    merchant_no  integer NOT NULL,
    kind         account_kind NOT NULL,
    debits_fen   bigint NOT NULL,
    credits_fen  bigint NOT NULL,
    PRIMARY KEY (bucket, campaign_no, merchant_no)
);

-- A key must name what tables are distributed by.
ALTER TABLE voucher DROP CONSTRAINT voucher_pkey;
ALTER TABLE voucher ADD PRIMARY KEY (bucket, voucher_id);

SELECT create_distributed_table('bucket_turn', 'bucket', colocate_with => 'none');
DO $$ DECLARE v_table regclass; BEGIN
    FOR v_table IN SELECT c.oid FROM pg_class c
                    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
                      AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'bucket' AND NOT a.attisdropped)
                      AND c.relname NOT IN ('account', 'transfer', 'merchant_day', 'settlement_share', 'callback_expiry', 'day_close', 'bucket_turn')
                    -- What is referenced first.
                    ORDER BY EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'f'), c.relname LOOP
        PERFORM create_distributed_table(v_table, 'bucket', colocate_with => 'bucket_turn');
    END LOOP;
END $$;

-- ---------------------------------------------------------------- functions that look where a till is

CREATE OR REPLACE FUNCTION lock_bucket(p_bucket smallint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM t.bucket FROM bucket_turn t WHERE t.bucket = p_bucket FOR UPDATE;
END $$;

CREATE FUNCTION copy_expiry() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO bucket_expiry (bucket, kind, reference) VALUES (NEW.bucket, NEW.kind, NEW.reference);
    RETURN NULL;
END $$;
CREATE TRIGGER copy_expiry AFTER INSERT ON transfer FOR EACH ROW WHEN (NEW.kind = 'EXPIRE') EXECUTE FUNCTION copy_expiry();

CREATE FUNCTION copy_payable() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO bucket_payable (bucket, campaign_no, merchant_no, kind, debits_fen, credits_fen)
    VALUES (NEW.bucket, NEW.campaign_no, NEW.merchant_no, NEW.kind, NEW.debits_fen, NEW.credits_fen)
    ON CONFLICT (bucket, campaign_no, merchant_no) DO UPDATE SET debits_fen = excluded.debits_fen, credits_fen = excluded.credits_fen;
    RETURN NULL;
END $$;
CREATE TRIGGER copy_payable AFTER INSERT OR UPDATE ON account FOR EACH ROW WHEN (NEW.kind = 'PAYABLE') EXECUTE FUNCTION copy_payable();

-- Citus cannot carry an answer of type void between the steps of one statement.
CREATE FUNCTION added_to_accounts(p_bucket smallint[], p_campaign_no smallint[], p_merchant_no integer[], p_kind account_kind[],
                                  p_debits_fen bigint[], p_credits_fen bigint[]) RETURNS boolean
    LANGUAGE plpgsql AS $$
BEGIN
    PERFORM add_to_accounts(p_bucket, p_campaign_no, p_merchant_no, p_kind, p_debits_fen, p_credits_fen);
    RETURN true;
END $$;

-- The same functions with other words in them. A word that is not there any more stops this file.
CREATE FUNCTION pg_temp.reword(p_function text, p_old text, p_new text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_text text := pg_get_functiondef(p_function::regproc);
BEGIN
    IF strpos(v_text, p_old) = 0 THEN
        RAISE EXCEPTION '% does not say % any more', p_function, p_old;
    END IF;
    EXECUTE replace(v_text, p_old, p_new);
END $$;
SELECT pg_temp.reword('is_stock_expired', 'FROM transfer', 'FROM bucket_expiry'),
       pg_temp.reword('refund_room_fen', 'FROM account', 'FROM bucket_payable'),
       pg_temp.reword('refund_room_fen', 'FROM merchant ', 'FROM merchant_debt '),
       pg_temp.reword('close_day', 'SELECT add_to_accounts(', 'SELECT added_to_accounts(');

-- ---------------------------------------------------------------- a batch runs on the node of its bucket

-- Citus sees where a statement belongs only when it is planned with its values. Sessions of tills need the same setting.
DO $$ DECLARE v_function regprocedure; BEGIN
    FOR v_function IN SELECT f.oid FROM pg_proc f
                       WHERE f.pronamespace = 'public'::regnamespace AND 'plan_cache_mode=force_generic_plan' = ANY (f.proconfig)
                       ORDER BY f.proname LOOP
        EXECUTE format('ALTER FUNCTION %s SET plan_cache_mode = force_custom_plan', v_function);
        EXECUTE format('ALTER FUNCTION %s SET citus.allow_nested_distributed_execution = on', v_function);
        PERFORM create_distributed_function(v_function, 'p_bucket', colocate_with => 'bucket_turn');
    END LOOP;
    -- These are called in statements, too, and there they run where the rows are.
    FOR v_function IN SELECT f.oid FROM pg_proc f WHERE f.pronamespace = 'public'::regnamespace
                       AND f.proname IN ('refund_room_fen', 'is_stock_expired', 'expired_stocks', 'cap_broken', 'is_use_live') ORDER BY f.proname LOOP
        EXECUTE format('ALTER FUNCTION %s SET plan_cache_mode = force_custom_plan', v_function);
        EXECUTE format('ALTER FUNCTION %s SET citus.allow_nested_distributed_execution = on', v_function);
        PERFORM create_distributed_function(v_function, 'p_bucket', colocate_with => 'bucket_turn');
    END LOOP;
END $$;

-- ---------------------------------------------------------------- who may do what

REVOKE EXECUTE ON FUNCTION copy_debt, copy_expiry, copy_payable, added_to_accounts FROM PUBLIC;
GRANT SELECT ON bucket_turn, bucket_expiry, bucket_payable, merchant_debt TO hanquan_redemption, hanquan_finance, hanquan_auditor;
GRANT USAGE ON SEQUENCE stock_stock_no_seq TO hanquan_operator; -- Citus asks for it, though it is an identity
GRANT UPDATE ON bucket_turn TO hanquan_redemption, hanquan_finance; -- a row lock asks for it; nobody changes a row
