-- Grants: vouchers and packs that the city hands to a list of people.

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
