-- Terminals by the names that people use, for the command line.

-- name: terminal_named
-- The numbers of a merchant ($1) and its terminal ($2); 0 for a key that names none, which is asked for as null.
SELECT m.merchant_no, coalesce(t.terminal_no, 0) AS terminal_no
  FROM merchant m LEFT JOIN terminal t ON t.merchant_no = m.merchant_no AND t.terminal_id = $2
 WHERE m.merchant_id = $1 AND (t.terminal_no IS NOT NULL OR $2 IS NULL);

-- name: terminal_names
-- The names of merchants ($1) and, where there is one, of the terminal ($2) beside each.
SELECT a.merchant_no, a.terminal_no, m.merchant_id, t.terminal_id
  FROM unnest($1::integer[], $2::integer[]) AS a(merchant_no, terminal_no)
  JOIN merchant m ON m.merchant_no = a.merchant_no
  LEFT JOIN terminal t ON t.terminal_no = a.terminal_no;
