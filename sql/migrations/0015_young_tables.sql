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

REVOKE EXECUTE ON FUNCTION analyze_young FROM PUBLIC;
GRANT EXECUTE ON FUNCTION analyze_young TO hanquan_redemption;
