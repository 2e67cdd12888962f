-- name: insert_merchants
-- Enrols merchants; answers their numbers by their ids.
INSERT INTO merchant (merchant_id, name, category, district, payee_name, payee_account, payee_bank)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[])
RETURNING merchant_no, merchant_id;

-- name: insert_terminals
-- One terminal for each merchant number given.
INSERT INTO terminal (merchant_no, terminal_id) SELECT * FROM unnest($1::integer[], $2::text[])
RETURNING terminal_no, merchant_no;

-- name: insert_operator
-- Enrols an operator, once; answers the name that stands in the books.
WITH fresh AS (
    INSERT INTO operator (operator_id, name) VALUES ($1, $2) ON CONFLICT (operator_id) DO NOTHING RETURNING name
)
SELECT name::text FROM fresh UNION ALL SELECT name::text FROM operator WHERE operator_id = $1 LIMIT 1;

-- name: insert_keys
-- Keys of partners, terminals or operators.
INSERT INTO api_key (serial_no, holder_kind, holder_id, terminal_no, algorithm, key_material, not_before, not_after)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::integer[], $5::text[], $6::bytea[], $7::timestamptz[], $8::timestamptz[]);

-- name: set_quota
-- Claims a second that a partner may send, or null for no limit; answers its number, and nothing for a partner nobody knows.
UPDATE partner SET claims_per_s_max = $2 WHERE partner_id = $1 RETURNING partner_no;
