-- Queries of stack/load. They run as hanquan_operator.

-- name: revoke_keys
-- Ends the keys of a load test that is over; their secrets are gone by then.
UPDATE api_key SET revoked_at = $2 WHERE serial_no = ANY ($1::text[]) AND revoked_at IS NULL

-- name: limit_keys
-- Ends the keys of a plan that somebody took along, at a moment to come.
UPDATE api_key SET not_after = $2 WHERE serial_no = ANY ($1::text[]) AND not_after > $2
