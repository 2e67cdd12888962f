-- Tables of rounds only grow, within minutes, to millions of rows. With the usual shares (a fifth, a tenth) autovacuum
-- went through them every five seconds of a rush, and each time every plan for them was made anew; there is nothing to
-- clear away in them, and no plan is another after a tenth more. Now each time they have doubled (ADR 23).

CREATE OR REPLACE FUNCTION open_round_storage(p_round_no smallint) RETURNS void
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

DO $$
DECLARE
    v_part regclass;
BEGIN
    FOR v_part IN SELECT i.inhrelid FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                   WHERE i.inhparent IN (SELECT to_regclass('public.' || t) FROM round_tables() t) AND c.relkind = 'r' LOOP
        EXECUTE format('ALTER TABLE %s SET (autovacuum_vacuum_insert_scale_factor = 1, autovacuum_analyze_scale_factor = 1)', v_part);
    END LOOP;
END $$;
