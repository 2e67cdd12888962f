-- Queries of issuer/operator: stocks as operators see and move them. Run as hanquan_operator; what changes anything is a
-- function of the schema (life of a stock), which checks it.

-- name: shards
-- How many shards the city has.
SELECT shards FROM city

-- name: operator_name
-- The name of whoever signs with a key.
SELECT name::text FROM operator WHERE operator_no = $1

-- name: stocks
-- Stocks as they stand at a moment ($1), of one campaign ($2, all when null), or one of them ($3 its id).
SELECT s.stock_no, s.stock_id, c.campaign_id, d.round_id, d.round_no, p.partner_id, s.category, s.quantity, s.face_value_fen, s.funded_fen,
       stock_issued_of(s.stock_no) AS issued, d.opens_at, d.closes_at, s.valid_until,
       CASE WHEN s.state = 'SCHEDULED' AND $1 >= d.opens_at AND $1 < d.closes_at THEN 'RUNNING'
            ELSE stock_state_at(s.state, d.closes_at, $1)::text END AS state
  FROM stock s JOIN round d USING (round_no) JOIN campaign c USING (campaign_no) JOIN partner p USING (partner_no)
 WHERE ($2::text IS NULL OR c.campaign_id = $2) AND ($3::text IS NULL OR s.stock_id = $3)
 ORDER BY d.opens_at, d.round_no, s.stock_no

-- name: moves
-- The moves of a stock, in order.
SELECT verb::text, from_state::text, to_state::text, moved_by::text, why, moved_at FROM stock_move WHERE stock_no = $1 ORDER BY move_no

-- name: edits
-- The edits of a stock's quantity, in order.
SELECT edit_no, current_quantity, target_quantity, state::text, asked_by::text, why, asked_at FROM stock_edit WHERE stock_no = $1 ORDER BY edit_no

-- name: move
-- Moves a stock; see the function.
SELECT outcome, detail, state::text FROM move_stock($1, $2::text::stock_verb, $3, $4, $5)

-- name: edit
-- Begins an edit; see the function.
SELECT outcome, detail, edit_no, quantity FROM edit_stock($1, $2, $3, $4, $5, $6, $7)

-- name: ask_back
-- Writes down what is to be taken from shards; see the function.
SELECT ask_back($1, $2::smallint[], $3::bigint[])

-- name: note_given
-- Writes down what a shard gave; see the function.
SELECT note_given($1, $2, $3)

-- name: finish_edit
-- Ends a pending edit; see the function.
SELECT outcome, quantity FROM finish_edit($1, $2)

-- name: pending_edits
-- Edits of a round's stocks that were begun and not ended.
SELECT e.edit_no, e.stock_no, e.current_quantity - e.target_quantity AS units
  FROM stock_edit e JOIN stock s USING (stock_no) WHERE e.state = 'PENDING' AND s.round_no = $1 ORDER BY e.edit_no

-- name: asked_back
-- What a pending edit asked of shards, in order.
SELECT adjust_no, shard, delta, applied FROM stock_adjustment WHERE edit_no = $1 ORDER BY adjust_no

-- name: lock_publishing
-- One at a time changes what is published of a round; held until it is given back or the connection ends.
SELECT pg_advisory_lock(4822, $1)

-- name: try_publishing
-- True when this connection is now that one.
SELECT pg_try_advisory_lock(4822, $1)

-- name: unlock_publishing
-- Gives that lock back.
SELECT pg_advisory_unlock(4822, $1)

-- name: wanted_of_round
-- How shards should hold the stocks of a round.
SELECT stock_no, CASE state WHEN 'SCHEDULED' THEN 'RUN' WHEN 'ENDED' THEN 'ENDED' WHEN 'CLOSED' THEN 'ENDED' ELSE 'PAUSED' END AS state
  FROM stock WHERE round_no = $1

-- name: last_adjustments
-- The last adjustment of each shard that the quantities of a round's stocks contain.
SELECT a.stock_no, a.shard, max(a.adjust_no) AS adjust_no
  FROM stock_adjustment a JOIN stock s USING (stock_no) WHERE s.round_no = $1 AND a.adjust_no <= s.adjust_no GROUP BY a.stock_no, a.shard

-- name: adjustments_after
-- What a shard ($2) must still apply to a stock ($1) after a number ($3), in order.
SELECT a.adjust_no, a.applied FROM stock_adjustment a JOIN stock s USING (stock_no)
 WHERE a.stock_no = $1 AND a.shard = $2 AND a.adjust_no > $3 AND a.adjust_no <= s.adjust_no ORDER BY a.adjust_no

-- name: round_no
-- A round by its campaign's name and its own.
SELECT d.round_no FROM round d JOIN campaign c USING (campaign_no) WHERE c.campaign_id = $1 AND d.round_id = $2

-- name: has_campaign
-- Whether there is a campaign of this name.
SELECT EXISTS (SELECT FROM campaign WHERE campaign_id = $1)

-- name: not_drained
-- Shards ($1) whose log up to an entry ($2) is not in the books yet.
SELECT e.shard FROM unnest($1::smallint[], $2::text[]) AS e(shard, ends_at) LEFT JOIN drain_position p USING (shard)
 WHERE string_to_array(coalesce(p.position, '0-0'), '-')::numeric[] < string_to_array(e.ends_at, '-')::numeric[]

-- name: roll_over
-- Rolls a round over into another; see the function.
SELECT outcome, detail, rollover_no FROM roll_over($1, $2, $3::integer[], $4::smallint[], $5::bigint[], $6, $7, $8)

-- name: rollover
-- One rollover, with what it carried.
SELECT r.rollover_no, f.round_id AS from_round_id, t.round_id AS to_round_id, r.carried_fen, r.returned_fen, r.rolled_by::text, r.rolled_at
  FROM rollover r JOIN round f ON f.round_no = r.from_round_no JOIN round t ON t.round_no = r.to_round_no WHERE r.rollover_no = $1

-- name: rolled_stocks
-- The stocks of a rollover; without to_stock_id the units are gone.
SELECT f.stock_id AS from_stock_id, t.stock_id AS to_stock_id, r.units
  FROM rollover_stock r JOIN stock f ON f.stock_no = r.from_stock_no LEFT JOIN stock t ON t.stock_no = r.to_stock_no
 WHERE r.rollover_no = $1 ORDER BY r.from_stock_no
