-- Retention: how long what is kept, rounds in the archive, and what is done for a person who asks.

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

REVOKE EXECUTE ON FUNCTION round_tables, round_lists, renew_books, read_books, keep_until, is_step_done, first_id, archive_blocked_by, bound_round,
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

-- The custodian reads what it needs for retention and for what people ask, and deletes from three tables beside the ledger.
GRANT USAGE ON SCHEMA public TO hanquan_custodian;
GRANT SELECT ON city, campaign, round, stock, pack, partner, merchant, terminal, stock_issued, drain_position, request_number,
                flag, person_block, callback_event, callback_expiry TO hanquan_custodian;
GRANT DELETE ON flag, person_block, callback_event TO hanquan_custodian;
GRANT EXECUTE ON FUNCTION account_bucket, account_merchant TO hanquan_custodian;
