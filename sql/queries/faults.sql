-- Queries of stack/faults: what the books say of claims that clients made while the stack was broken.

-- name: partner_no
-- Our number of a partner.
SELECT partner_no FROM partner WHERE partner_id = $1::text

-- name: vouchers_of_numbers
-- Vouchers by the keys of their claims' numbers, all there are.
SELECT out_request_no, person, voucher_id FROM voucher WHERE request_key = ANY ($1::bigint[]) ORDER BY voucher_id
