-- The login roles of the services and of the people beside them. Roles belong to the whole
-- cluster, not to one database, so they are made here, ahead of the migrations. Running this
-- again changes nothing. No passwords here: sql/migrate.py sets them. What each role may do
-- is granted in schema.sql.

DO $$
DECLARE
    role_name text;
BEGIN
    FOREACH role_name IN ARRAY ARRAY[
        'hanquan_issuer',      -- claims, rounds, drain
        'hanquan_redemption',  -- checkout, refunds
        'hanquan_finance',     -- settlement, reconciliation
        'hanquan_antifraud',   -- signals, verdicts, appeals
        'hanquan_operator',    -- campaigns, merchants, accounts
        'hanquan_custodian',   -- retention, what people ask about themselves
        'hanquan_auditor'      -- reads everything, writes nothing
    ]
    LOOP
        BEGIN
            EXECUTE format(
                'CREATE ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOINHERIT',
                role_name);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL; -- made before, or by someone at this very moment
        END;
    END LOOP;
END
$$;
