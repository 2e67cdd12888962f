-- Queries of issuer/grants/grant.py. They run as hanquan_operator.

-- name: insert_run
-- Writes down that a list ($3 its hash, $4 how many people) is handed out: of a stock ($1) or a pack ($2).
INSERT INTO grant_run (stock_no, pack_no, sha256, people, granted_by, began_at) VALUES ($1, $2, $3, $4, $5, $6) RETURNING run_no;

-- name: insert_results
-- Writes down how many people got what.
INSERT INTO grant_result (run_no, outcome, people) SELECT $1, * FROM unnest($2::text[], $3::integer[]);

-- name: runs
-- The newest runs, with what came of them.
SELECT g.run_no, coalesce(s.stock_id, p.pack_id) AS offer_id, g.people, g.granted_by, g.began_at,
       coalesce(array_agg(r.outcome ORDER BY r.outcome) FILTER (WHERE r.outcome IS NOT NULL), '{}') AS outcomes,
       coalesce(array_agg(r.people ORDER BY r.outcome) FILTER (WHERE r.outcome IS NOT NULL), '{}') AS counts
  FROM grant_run g
  LEFT JOIN stock s USING (stock_no) LEFT JOIN pack p USING (pack_no) LEFT JOIN grant_result r USING (run_no)
 GROUP BY g.run_no, s.stock_id, p.pack_id ORDER BY g.run_no DESC LIMIT $1;
