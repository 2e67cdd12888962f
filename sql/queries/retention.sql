-- Queries of stack/retention, as hanquan_custodian; what needs the tables' owner says so.

-- name: city
-- How many buckets and shards the city has.
SELECT buckets, shards FROM city;

-- name: rules
-- How many days each family is kept.
SELECT family, keep_days, least_days, changed_by, changed_at FROM retention_rule ORDER BY family;

-- name: set_rule
-- Changes how long a family is kept; no row when there is no such family.
UPDATE retention_rule SET keep_days = $2, changed_by = $3, changed_at = $4 WHERE family = $1 RETURNING keep_days;

-- name: rounds
-- Every round with its ends and with what retention did to it.
SELECT e.round_no, e.campaign_no, e.campaign_id || '/' || e.round_id AS name, e.closes_at, e.campaign_ends_at,
       c.face_fen_per_person_max IS NOT NULL AS is_capped,
       ARRAY(SELECT t.step || t.part FROM retention_step t WHERE t.round_no = e.round_no AND t.done_at IS NOT NULL) AS done
  FROM round_end e JOIN campaign c USING (campaign_no) ORDER BY e.campaign_ends_at, e.round_no;

-- name: issued
-- Vouchers in the books of the stocks of a round.
SELECT s.stock_no, coalesce(sum(i.issued), 0)::bigint AS issued
  FROM stock s LEFT JOIN stock_issued i USING (stock_no) WHERE s.round_no = $1 GROUP BY s.stock_no;

-- name: not_drained
-- Shards ($1 shard, $2 last entry of its log) that the drain has not read to the end.
SELECT e.shard FROM unnest($1::smallint[], $2::text[]) AS e(shard, ends_at) LEFT JOIN drain_position p USING (shard)
 WHERE string_to_array(coalesce(nullif(p.position, '0'), '0-0'), '-')::numeric[] < string_to_array(e.ends_at, '-')::numeric[];

-- name: begin_step
-- Writes down that something is about to be done to a round.
SELECT begin_step($1, $2, $3, $4, $5);

-- name: end_step
-- And that it was done: how many, bytes before and after.
SELECT end_step($1, $2, $3, $4, $5, $6, $7);

-- ---------------------------------------------------------------- cases of anti-fraud

-- name: old_cases
-- Cases about people and devices, how many are older than $1, and the oldest. A flag that nobody closed ages from its opening;
-- a block from its end.
SELECT count(*) AS items, count(*) FILTER (WHERE over_at < $1) AS due, min(over_at) AS oldest
  FROM (SELECT coalesce(closed_at, opened_at) AS over_at FROM flag WHERE subject_kind <> 'merchant'
        UNION ALL SELECT coalesce(lifted_at, expires_at) FROM person_block) AS one;

-- name: delete_flags
-- Removes up to $2 flags about people and devices that are older than $1.
DELETE FROM flag WHERE flag_id IN (
    SELECT flag_id FROM flag WHERE subject_kind <> 'merchant' AND coalesce(closed_at, opened_at) < $1 LIMIT $2) RETURNING flag_id;

-- name: delete_blocks
-- Removes up to $2 blocks that ended before $1.
DELETE FROM person_block WHERE block_id IN (
    SELECT block_id FROM person_block WHERE coalesce(lifted_at, expires_at) < $1 LIMIT $2) RETURNING block_id;

-- ---------------------------------------------------------------- callbacks

-- name: old_callbacks
-- Callbacks that are over, how many were delivered before $1 or given up before $2, and the oldest.
SELECT count(*) AS items, count(*) FILTER (WHERE delivered_at < $1 OR died_at < $2) AS due,
       min(coalesce(delivered_at, died_at)) AS oldest
  FROM callback_event WHERE next_at IS NULL;

-- name: delete_callbacks
-- Goes through the next $6 events of a bucket ($3) after voucher $4, attempt $5 and removes those delivered before $1 or given
-- up before $2. Answers where the next page begins, null at the end, and how many were removed. All events of one use of a
-- voucher are on one page.
WITH page AS MATERIALIZED (
    SELECT voucher_id, attempt FROM callback_event WHERE bucket = $3 AND (voucher_id, attempt) > ($4, $5)
     ORDER BY voucher_id, attempt LIMIT $6
), edge AS (
    SELECT voucher_id, attempt FROM page ORDER BY voucher_id DESC, attempt DESC LIMIT 1
), gone AS (
    DELETE FROM callback_event e USING edge
     WHERE e.bucket = $3 AND (e.voucher_id, e.attempt) > ($4, $5) AND (e.voucher_id, e.attempt) <= (edge.voucher_id, edge.attempt)
       AND (e.delivered_at < $1 OR e.died_at < $2) RETURNING 1
)
SELECT (SELECT voucher_id FROM edge) AS voucher_id, (SELECT attempt FROM edge) AS attempt, (SELECT count(*) FROM gone) AS removed;

-- ---------------------------------------------------------------- the storage of rounds

-- name: storage
-- The tables of a round that are in use: their size, that of their indexes, and how many rows they have about.
SELECT c.relname::text AS name, t AS parent, pg_total_relation_size(c.oid) AS bytes, pg_indexes_size(c.oid) AS index_bytes,
       greatest(c.reltuples, 0)::bigint AS items
  FROM round_tables() t JOIN pg_class c ON c.relname = t || '_r' || $1::integer AND c.relnamespace = 'public'::regnamespace ORDER BY 2;

-- name: archive_blocked_by
-- Why a round cannot be detached at a time; null when it can.
SELECT archive_blocked_by($1, $2);

-- name: bound_round
-- Says of the tables of a round what they hold: first without a look (false), then with one (true).
SELECT bound_round($1, $2);

-- name: archive_round
-- Detaches a round: a refusal, or nothing; about how many rows it has.
SELECT refusal, items FROM archive_round($1, $2, $3, $4);

-- name: archive_numbers
-- Moves the next $4 numbers of a bucket ($2) after a key ($3), as far as they are of the round: where to go on, how many.
SELECT last, moved FROM archive_numbers($1, $2, $3, $4);

-- name: archive_person_use
-- Moves what caps counted of a round.
SELECT archive_person_use($1);

-- name: unlink_round
-- Ends the link to people: a refusal, or nothing; how many rows.
SELECT refusal, items FROM unlink_round($1, $2, $3);

-- name: export_tables
-- What to copy of a round before it is detached: the table, and the statement.
SELECT t AS name, format('SELECT * FROM books.%I WHERE voucher_id >= %s AND voucher_id < %s ORDER BY voucher_id',
                         t, first_id($1::integer), first_id($1::integer + 1)) AS statement
  FROM round_tables() t ORDER BY 1;

-- name: pack_statements
-- Builds, quoted by the server, the statements that pack the indexes of a table, pages full to the last entry: nobody
-- comes to squeeze one in between. They are the owner's to run, one by one.
SELECT format('ALTER INDEX %s SET (fillfactor = 100)', i.oid::regclass)
  FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_am m ON m.oid = i.relam
 WHERE x.indrelid = to_regclass('public.' || $1::text) AND m.amname = 'btree'
UNION ALL
SELECT format('REINDEX TABLE CONCURRENTLY public.%I', $1::text);

-- name: drop_broken_indexes
-- Builds the statements that remove what an interrupted packing of a table left behind; they are the owner's to run.
SELECT format('DROP INDEX CONCURRENTLY public.%I', i.relname)
  FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
 WHERE x.indrelid = to_regclass('public.' || $1::text) AND NOT x.indisvalid AND i.relname ~ '_ccnew[0-9]*$';
