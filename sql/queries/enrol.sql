-- name: insert_merchants
-- Enrols merchants; answers their numbers by their ids.
INSERT INTO merchant (merchant_id, name, category, district, payee_name, payee_account, payee_bank)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[])
RETURNING merchant_no, merchant_id;

-- name: insert_terminals
-- One terminal for each merchant number given.
INSERT INTO terminal (merchant_no, terminal_id) SELECT * FROM unnest($1::integer[], $2::text[])
RETURNING terminal_no, merchant_no;

-- name: insert_keys
-- Keys of partners or terminals.
INSERT INTO api_key (serial_no, holder_kind, holder_id, terminal_no, algorithm, key_material, not_before, not_after)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::integer[], $5::text[], $6::bytea[], $7::timestamptz[], $8::timestamptz[]);
