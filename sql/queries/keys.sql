-- name: api_keys
-- All keys that may sign requests now or soon: of partners, of terminals that are not suspended nor their stores, of operators.
SELECT k.serial_no, k.holder_kind, k.holder_id, k.terminal_no, k.algorithm, k.key_material, k.not_before, k.not_after,
       coalesce(p.partner_no::integer, m.merchant_no, o.operator_no) AS holder_no, p.claims_per_s_max
  FROM api_key k
  LEFT JOIN partner p ON k.holder_kind = 'partner' AND p.partner_id = k.holder_id
  LEFT JOIN merchant m ON k.holder_kind = 'merchant' AND m.merchant_id = k.holder_id
  LEFT JOIN operator o ON k.holder_kind = 'operator' AND o.operator_id = k.holder_id
  LEFT JOIN terminal t ON t.terminal_no = k.terminal_no
  LEFT JOIN store s ON s.store_no = t.store_no
 WHERE k.revoked_at IS NULL
   AND coalesce(p.partner_no::integer, m.merchant_no, o.operator_no) IS NOT NULL
   AND NOT coalesce(t.suspended, false) AND NOT coalesce(s.suspended, false)
   AND (t.merchant_no IS NULL OR t.merchant_no = m.merchant_no);

