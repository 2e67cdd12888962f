-- Queries of `./hanquan watch`, by the auditor. Each reads a few small tables; none touches vouchers.

-- name: rounds_in_sight
-- Rounds that are open ($1 is now), are next, or were open within the hour, the nearest first; and how the stores are cut.
SELECT c.campaign_id, c.title_zh, c.title_en, r.round_no, r.round_id, r.opens_at, r.closes_at, city.shards
  FROM round r JOIN campaign c USING (campaign_no) CROSS JOIN city
 WHERE r.closes_at > $1::timestamptz - interval '1 hour'
 ORDER BY abs(extract(epoch FROM r.opens_at - $1)), r.round_no LIMIT $2;

-- name: stocks_in_sight
-- The stocks of some rounds with what of each is in the books.
SELECT s.round_no, s.stock_no, s.stock_id, p.partner_id, s.quantity, s.state = 'PAUSED' AS paused, coalesce(i.issued, 0) AS issued
  FROM stock s JOIN partner p USING (partner_no)
  LEFT JOIN (SELECT stock_no, sum(issued)::bigint AS issued FROM stock_issued GROUP BY stock_no) i USING (stock_no)
 WHERE s.round_no = ANY ($1::smallint[])
 ORDER BY s.round_no, s.stock_no;

-- name: health
-- How busy the server is; that it answers at all is half of what is asked.
SELECT numbackends AS connections, xact_commit + xact_rollback AS transactions FROM pg_stat_database WHERE datname = current_database();
