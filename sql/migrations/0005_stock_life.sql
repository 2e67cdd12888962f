-- Life of a stock: who moved it when, edits of its quantity, and what rolls over into the next round.

CREATE TYPE stock_state AS ENUM (
    'DRAFT',      -- being prepared
    'AUDIT',      -- submitted; somebody else must approve it
    'SCHEDULED',  -- runs between the opening and the closing of its round
    'PAUSED',     -- held back by an operator
    'ENDED',      -- over: before its time, or because its round closed
    'CLOSED'      -- all its wins are in the books; nothing changes any more
);
CREATE TYPE stock_verb AS ENUM ('SUBMIT', 'APPROVE', 'REJECT', 'PAUSE', 'RESUME', 'END', 'CLOSE');
CREATE TYPE edit_state AS ENUM ('PENDING', 'DONE', 'REFUSED');

ALTER TABLE stock ADD state stock_state NOT NULL DEFAULT 'DRAFT', ADD adjust_no bigint NOT NULL DEFAULT 0;
UPDATE stock SET state = CASE WHEN paused THEN 'PAUSED' ELSE 'SCHEDULED' END::stock_state;
ALTER TABLE stock DROP COLUMN paused;
ALTER TABLE stock DROP CONSTRAINT stock_quantity_check, ADD CHECK (quantity >= 0);
COMMENT ON COLUMN stock.state IS 'As it was last moved; a stock whose round has closed is ENDED whatever stands here (stock_state_at).';
COMMENT ON COLUMN stock.quantity IS 'How many vouchers there are to give out; changed by edits and rollovers only.';
COMMENT ON COLUMN stock.adjust_no IS 'The last adjustment (stock_adjustment) that quantity contains.';

ALTER TABLE round DROP CONSTRAINT round_budget_fen_check, ADD CHECK (budget_fen >= 0);
COMMENT ON COLUMN round.budget_fen IS 'What its vouchers may cost; moved by rollovers only.';

ALTER TABLE api_key DROP CONSTRAINT api_key_holder_kind_check,
    ADD CHECK (holder_kind IN ('partner', 'merchant', 'operator'));

CREATE TABLE operator (
    operator_no  integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    operator_id  text NOT NULL UNIQUE CHECK (operator_id ~ '^[A-Za-z0-9_-]{2,32}$'),
    name         staff_name NOT NULL
);
CREATE UNIQUE INDEX operator_name ON operator (lower(name));
COMMENT ON TABLE operator IS 'People who may sign requests to the operator service. A name is one person''s, so that nobody is two.';

CREATE TABLE stock_move (
    move_no     bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    stock_no    integer NOT NULL REFERENCES stock,
    verb        stock_verb NOT NULL,
    from_state  stock_state NOT NULL,
    to_state    stock_state NOT NULL,
    moved_by    staff_name NOT NULL,
    why         text NOT NULL CHECK (length(why) <= 500),
    moved_at    timestamptz NOT NULL,
    CONSTRAINT says_why CHECK (verb NOT IN ('REJECT', 'END') OR why <> '')
);
CREATE INDEX stock_move_stock ON stock_move (stock_no, move_no);

CREATE TABLE stock_edit (
    edit_no           bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    stock_no          integer NOT NULL REFERENCES stock,
    current_quantity  integer NOT NULL CHECK (current_quantity >= 0),
    target_quantity   integer NOT NULL CHECK (target_quantity >= 0),
    state             edit_state NOT NULL,
    asked_by          staff_name NOT NULL,
    why               text NOT NULL CHECK (length(why) BETWEEN 1 AND 500),
    asked_at          timestamptz NOT NULL,
    done_at           timestamptz,
    CHECK (current_quantity <> target_quantity),
    CHECK ((state = 'PENDING') = (done_at IS NULL))
);
CREATE UNIQUE INDEX stock_edit_pending ON stock_edit (stock_no) WHERE state = 'PENDING';
CREATE INDEX stock_edit_stock ON stock_edit (stock_no, edit_no);
COMMENT ON TABLE stock_edit IS 'Quantity up or down. PENDING: units are being taken back from the shards; REFUSED: too many were sold meanwhile.';

-- What each shard gained or lost by an edit. Numbers of a stock rise by one; a shard applies each once, in order
-- (issuer/lua/adjust.lua), so a crash anywhere is mended by asking again.
CREATE TABLE stock_adjustment (
    stock_no   integer NOT NULL REFERENCES stock,
    adjust_no  bigint NOT NULL CHECK (adjust_no > 0),
    edit_no    bigint NOT NULL REFERENCES stock_edit,
    shard      smallint NOT NULL CHECK (shard >= 0),
    delta      bigint NOT NULL CHECK (delta <> 0),
    applied    bigint CHECK (applied BETWEEN least(delta, 0) AND greatest(delta, 0)),
    PRIMARY KEY (stock_no, adjust_no)
);
CREATE INDEX stock_adjustment_edit ON stock_adjustment (edit_no);
COMMENT ON COLUMN stock_adjustment.applied IS 'What the shard could really give or take; null until it has answered.';

CREATE TABLE rollover (
    rollover_no    integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    from_round_no  smallint NOT NULL REFERENCES round,
    to_round_no    smallint NOT NULL REFERENCES round,
    carried_fen    bigint NOT NULL CHECK (carried_fen >= 0),
    returned_fen   bigint NOT NULL CHECK (returned_fen >= 0),
    rolled_by      staff_name NOT NULL,
    why            text NOT NULL CHECK (length(why) <= 500),
    rolled_at      timestamptz NOT NULL,
    CHECK (from_round_no <> to_round_no)
);
COMMENT ON COLUMN rollover.carried_fen IS 'Budget of vouchers nobody claimed, moved from one round to the other.';
COMMENT ON COLUMN rollover.returned_fen IS 'Money of expired vouchers that finance had returned to BUDGET, added to the other round''s budget.';

CREATE TABLE rollover_stock (
    from_stock_no  integer PRIMARY KEY REFERENCES stock,
    rollover_no    integer NOT NULL REFERENCES rollover,
    to_stock_no    integer REFERENCES stock,
    units          integer NOT NULL CHECK (units >= 0)
);
COMMENT ON TABLE rollover_stock IS 'Vouchers of a stock that nobody claimed; once a stock. Without a to_stock_no the next round has no such stock, '
    'and they are gone; their money stays in BUDGET.';

CREATE TABLE rollover_return (
    campaign_no  smallint NOT NULL,
    reference    text NOT NULL,
    rollover_no  integer NOT NULL REFERENCES rollover,
    PRIMARY KEY (campaign_no, reference),
    FOREIGN KEY (campaign_no, reference) REFERENCES fund_return
);
COMMENT ON TABLE rollover_return IS 'Returns of finance that raised a round''s budget; each raises one.';

-- A stock whose round has closed is over.
CREATE FUNCTION stock_state_at(p_state stock_state, p_closes_at timestamptz, p_at timestamptz) RETURNS stock_state
    LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN p_at >= p_closes_at AND p_state <> 'CLOSED' THEN 'ENDED'::stock_state ELSE p_state END $$;

-- Every move there is.
CREATE FUNCTION stock_transitions() RETURNS TABLE (verb stock_verb, from_state stock_state, to_state stock_state)
    LANGUAGE sql IMMUTABLE AS $$
    VALUES ('SUBMIT'::stock_verb, 'DRAFT'::stock_state, 'AUDIT'::stock_state),
           ('APPROVE', 'AUDIT', 'SCHEDULED'), ('REJECT', 'AUDIT', 'DRAFT'),
           ('PAUSE', 'SCHEDULED', 'PAUSED'), ('RESUME', 'PAUSED', 'SCHEDULED'),
           ('END', 'SCHEDULED', 'ENDED'), ('END', 'PAUSED', 'ENDED'), ('CLOSE', 'ENDED', 'CLOSED') $$;

CREATE FUNCTION stock_issued_of(p_stock_no integer) RETURNS bigint
    LANGUAGE sql STABLE AS $$ SELECT coalesce(sum(issued), 0)::bigint FROM stock_issued WHERE stock_no = p_stock_no $$;

-- Moves a stock. outcome: MOVED; REPLAYED when it is already there; else why not, with nothing changed.
-- Whoever submitted it cannot approve it.
CREATE FUNCTION move_stock(p_stock_no integer, p_verb stock_verb, p_by text, p_why text, p_at timestamptz,
                           OUT outcome text, OUT detail text, OUT state stock_state)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_stored    stock_state;
    v_closes_at timestamptz;
    v_to        stock_state;
    v_submitter text;
BEGIN
    SELECT s.state, d.closes_at INTO v_stored, v_closes_at
      FROM stock s JOIN round d USING (round_no) WHERE s.stock_no = p_stock_no FOR UPDATE OF s;
    IF NOT FOUND THEN
        outcome := 'UNKNOWN_STOCK';
        detail := format('there is no stock %s', p_stock_no);
        RETURN;
    END IF;
    state := stock_state_at(v_stored, v_closes_at, p_at);
    IF state = (SELECT t.to_state FROM stock_transitions() t WHERE t.verb = p_verb LIMIT 1) THEN
        outcome := 'REPLAYED';
        RETURN;
    END IF;
    v_to := (SELECT t.to_state FROM stock_transitions() t WHERE t.verb = p_verb AND t.from_state = move_stock.state);
    IF v_to IS NULL THEN
        outcome := 'STATE_CONFLICT';
        detail := format('the stock is %s; this can be done to one that is %s', state,
                         (SELECT string_agg(t.from_state::text, ' or ') FROM stock_transitions() t WHERE t.verb = p_verb));
        RETURN;
    END IF;
    IF p_verb IN ('REJECT', 'END') AND p_why = '' THEN
        outcome := 'NO_REASON';
        detail := 'say why';
        RETURN;
    END IF;
    IF p_verb = 'APPROVE' THEN
        v_submitter := (SELECT m.moved_by FROM stock_move m WHERE m.stock_no = p_stock_no AND m.verb = 'SUBMIT'
                         ORDER BY m.move_no DESC LIMIT 1);
        IF v_submitter IS NULL OR lower(v_submitter) = lower(p_by) THEN
            outcome := CASE WHEN v_submitter IS NULL THEN 'NOT_SUBMITTED' ELSE 'SAME_PERSON' END;
            detail := coalesce(v_submitter || ' submitted it; someone else must approve it',
                               'nobody is on record as having submitted it; reject it and submit it again');
            RETURN;
        END IF;
    END IF;
    IF p_verb = 'CLOSE' AND EXISTS (SELECT FROM stock_edit e WHERE e.stock_no = p_stock_no AND e.state = 'PENDING') THEN
        outcome := 'PENDING_EDIT';
        detail := 'an edit of its quantity is under way';
        RETURN;
    END IF;
    UPDATE stock s SET state = v_to WHERE s.stock_no = p_stock_no;
    INSERT INTO stock_move (stock_no, verb, from_state, to_state, moved_by, why, moved_at)
    VALUES (p_stock_no, p_verb, state, v_to, p_by, p_why, p_at);
    outcome := 'MOVED';
    state := v_to;
END $$;

-- What BUDGET holds beyond what may still be issued: by this round, and by rounds of its campaign that are open, about to
-- be (10 minutes), or closed for less than an hour, whose last wins may be on their way. p_over is left out.
CREATE FUNCTION budget_room_fen(p_round_no smallint, p_over smallint, p_at timestamptz) RETURNS bigint
    LANGUAGE sql STABLE AS $$
    WITH it AS (
        SELECT campaign_no FROM round WHERE round_no = p_round_no
    ), live AS (
        SELECT s.quantity, s.funded_fen, coalesce((SELECT sum(i.issued) FROM stock_issued i WHERE i.stock_no = s.stock_no), 0) AS issued
          FROM it JOIN round d USING (campaign_no) JOIN stock s USING (round_no)
         WHERE s.state <> 'CLOSED' AND d.round_no <> p_over
           AND (d.round_no = p_round_no OR p_at BETWEEN d.opens_at - interval '10 minutes' AND d.closes_at + interval '1 hour')
    )
    SELECT (coalesce((SELECT a.credits_fen - a.debits_fen FROM account a JOIN it USING (campaign_no)
                       WHERE a.bucket = 0 AND a.merchant_no = 0 AND a.kind = 'BUDGET'), 0)
            - coalesce((SELECT sum((quantity - issued) * funded_fen) FROM live), 0))::bigint
$$;

-- Gives units to shards, or takes them, under new numbers. p_units negative: they are asked for, and what the shard
-- could give is not known yet.
CREATE FUNCTION add_adjustments(p_edit_no bigint, p_shard smallint[], p_units bigint[]) RETURNS void
    LANGUAGE sql AS $$
    WITH edit AS (
        SELECT e.stock_no, greatest(s.adjust_no, (SELECT max(a.adjust_no) FROM stock_adjustment a WHERE a.stock_no = s.stock_no)) AS last_no
          FROM stock_edit e JOIN stock s USING (stock_no) WHERE e.edit_no = p_edit_no
    )
    INSERT INTO stock_adjustment (stock_no, adjust_no, edit_no, shard, delta, applied)
    SELECT edit.stock_no, edit.last_no + row_number() OVER (ORDER BY u.item), p_edit_no, u.shard, u.units,
           CASE WHEN u.units > 0 THEN u.units END
      FROM edit CROSS JOIN unnest(p_shard, p_units) WITH ORDINALITY AS u(shard, units, item) WHERE u.units <> 0
$$;

-- Deals units to all shards as evenly as a new stock is dealt.
CREATE FUNCTION deal_units(p_edit_no bigint, p_units bigint) RETURNS void
    LANGUAGE sql AS $$
    SELECT add_adjustments(p_edit_no, array_agg(n::smallint ORDER BY n),
                           array_agg(p_units * (n + 1) / c.shards - p_units * n / c.shards ORDER BY n))
      FROM city c CROSS JOIN LATERAL generate_series(0, c.shards - 1) AS n
$$;

-- Changes a quantity, and notes that it contains every adjustment there is.
CREATE FUNCTION change_quantity(p_stock_no integer, p_units bigint) RETURNS void
    LANGUAGE sql AS $$
    UPDATE stock s SET quantity = s.quantity + p_units,
           adjust_no = greatest(s.adjust_no, (SELECT max(a.adjust_no) FROM stock_adjustment a WHERE a.stock_no = p_stock_no))
     WHERE s.stock_no = p_stock_no
$$;

-- Begins an edit of a stock's quantity. outcome: DONE (up, or down while no shard holds it); PENDING (down: units must be
-- taken back first); REPLAYED when this very edit was the last one; else why not, with nothing changed. quantity is the true one.
-- The caller holds the lock of the round (4822).
CREATE FUNCTION edit_stock(p_stock_no integer, p_current integer, p_target integer, p_is_held boolean, p_by text, p_why text,
                           p_at timestamptz, OUT outcome text, OUT detail text, OUT edit_no bigint, OUT quantity integer)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_stock stock;
    v_round round;
    v_last  stock_edit;
    v_state stock_state;
    v_fen   bigint;
BEGIN
    SELECT * INTO v_stock FROM stock s WHERE s.stock_no = p_stock_no FOR UPDATE;
    IF NOT FOUND THEN
        outcome := 'UNKNOWN_STOCK';
        detail := format('there is no stock %s', p_stock_no);
        RETURN;
    END IF;
    SELECT * INTO v_round FROM round d WHERE d.round_no = v_stock.round_no FOR UPDATE;
    SELECT * INTO v_last FROM stock_edit e WHERE e.stock_no = p_stock_no ORDER BY e.edit_no DESC LIMIT 1;
    quantity := v_stock.quantity;
    v_state := stock_state_at(v_stock.state, v_round.closes_at, p_at);
    IF v_last.state = 'PENDING' THEN
        outcome := 'PENDING_EDIT';
        detail := format('an edit to %s by %s is under way', v_last.target_quantity, v_last.asked_by);
        RETURN;
    END IF;
    IF v_last.state = 'DONE' AND v_last.current_quantity = p_current AND v_last.target_quantity = p_target
       AND lower(v_last.asked_by) = lower(p_by) AND quantity = p_target THEN
        outcome := 'REPLAYED';
        edit_no := v_last.edit_no;
        RETURN;
    END IF;
    IF v_state IN ('ENDED', 'CLOSED') THEN
        outcome := 'STATE_CONFLICT';
        detail := format('the stock is %s', v_state);
        RETURN;
    END IF;
    IF quantity <> p_current THEN
        outcome := 'STALE';
        detail := format('the quantity is %s, not %s; look at the stock again', quantity, p_current);
        RETURN;
    END IF;
    IF p_target = quantity THEN
        outcome := 'REPLAYED';
        RETURN;
    END IF;
    IF p_target < stock_issued_of(p_stock_no) THEN
        outcome := 'BELOW_ISSUED';
        detail := format('%s vouchers are out already', stock_issued_of(p_stock_no));
        RETURN;
    END IF;
    IF p_target > quantity THEN
        PERFORM FROM campaign c WHERE c.campaign_no = v_round.campaign_no FOR NO KEY UPDATE;
        v_fen := (SELECT sum(s.quantity * s.funded_fen) FROM stock s WHERE s.round_no = v_round.round_no)
                 + (p_target - quantity) * v_stock.funded_fen - v_round.budget_fen;
        IF v_fen > 0 THEN
            outcome := 'OVER_ROUND_BUDGET';
            detail := format('the round''s budget of %s fen is %s fen short; take units from another stock, or roll money over',
                             v_round.budget_fen, v_fen);
            RETURN;
        END IF;
        v_fen := (p_target - quantity) * v_stock.funded_fen - budget_room_fen(v_round.round_no, 0::smallint, p_at);
        IF v_fen > 0 THEN
            outcome := 'BUDGET_SHORT';
            detail := format('BUDGET is %s fen short', v_fen);
            RETURN;
        END IF;
    END IF;
    outcome := CASE WHEN p_target < quantity AND p_is_held THEN 'PENDING' ELSE 'DONE' END;
    INSERT INTO stock_edit (stock_no, current_quantity, target_quantity, state, asked_by, why, asked_at, done_at)
    VALUES (p_stock_no, p_current, p_target, outcome::edit_state, p_by, p_why, p_at, CASE WHEN outcome = 'DONE' THEN p_at END)
    RETURNING stock_edit.edit_no INTO edit_no;
    IF outcome = 'DONE' THEN
        IF p_target > quantity THEN
            PERFORM deal_units(edit_no, p_target - quantity);
        END IF;
        PERFORM change_quantity(p_stock_no, p_target - quantity);
        quantity := p_target;
    END IF;
END $$;

-- Writes down what is to be taken from shards for a pending edit, before any of it is taken.
CREATE FUNCTION ask_back(p_edit_no bigint, p_shard smallint[], p_units bigint[]) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM FROM stock_edit e WHERE e.edit_no = p_edit_no AND e.state = 'PENDING' FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'edit % is not pending', p_edit_no USING ERRCODE = 'HQ002';
    END IF;
    PERFORM add_adjustments(p_edit_no, p_shard, (SELECT array_agg(-units ORDER BY item) FROM unnest(p_units) WITH ORDINALITY u(units, item)));
END $$;

-- Writes down what a shard gave for a pending edit.
CREATE FUNCTION note_given(p_edit_no bigint, p_adjust_no bigint, p_applied bigint) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    UPDATE stock_adjustment a SET applied = p_applied FROM stock_edit e
     WHERE e.edit_no = p_edit_no AND e.state = 'PENDING' AND a.edit_no = e.edit_no AND a.adjust_no = p_adjust_no
$$;

-- Ends a pending edit: DONE when all units came back, else REFUSED, and the shards get back what they gave.
CREATE FUNCTION finish_edit(p_edit_no bigint, p_at timestamptz, OUT outcome text, OUT quantity integer)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_edit  stock_edit;
    v_given bigint;
BEGIN
    SELECT * INTO STRICT v_edit FROM stock_edit e WHERE e.edit_no = p_edit_no FOR UPDATE;
    PERFORM FROM stock s WHERE s.stock_no = v_edit.stock_no FOR UPDATE;
    IF v_edit.state <> 'PENDING' THEN
        outcome := v_edit.state;
        quantity := (SELECT s.quantity FROM stock s WHERE s.stock_no = v_edit.stock_no);
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM stock_adjustment a WHERE a.edit_no = p_edit_no AND a.applied IS NULL) THEN
        RAISE EXCEPTION 'edit %: a shard has not answered', p_edit_no USING ERRCODE = 'HQ002';
    END IF;
    v_given := coalesce((SELECT -sum(a.applied) FROM stock_adjustment a WHERE a.edit_no = p_edit_no), 0);
    outcome := CASE WHEN v_given = v_edit.current_quantity - v_edit.target_quantity THEN 'DONE' ELSE 'REFUSED' END;
    IF outcome = 'REFUSED' THEN
        PERFORM add_adjustments(p_edit_no, array_agg(g.shard), array_agg(g.units))
           FROM (SELECT a.shard, -sum(a.applied)::bigint AS units FROM stock_adjustment a WHERE a.edit_no = p_edit_no
                  GROUP BY a.shard ORDER BY a.shard) g HAVING count(*) > 0;
    END IF;
    PERFORM change_quantity(v_edit.stock_no, CASE outcome WHEN 'DONE' THEN -v_given ELSE 0 END);
    quantity := (SELECT s.quantity FROM stock s WHERE s.stock_no = v_edit.stock_no);
    UPDATE stock_edit e SET state = outcome::edit_state, done_at = p_at WHERE e.edit_no = p_edit_no;
END $$;

-- What nobody claimed of the stocks of a round, each with the stock of another round that can take it: of the same partner,
-- category and value. Stocks that were rolled over before are left out.
CREATE FUNCTION unclaimed_units(p_from smallint, p_to smallint)
    RETURNS TABLE (from_stock_no integer, to_stock_no integer, units integer, funded_fen bigint)
    LANGUAGE sql STABLE AS $$
    SELECT s.stock_no, (SELECT min(n.stock_no) FROM stock n
                         WHERE n.round_no = p_to AND n.state NOT IN ('ENDED', 'CLOSED')
                           AND (n.partner_no, n.category, n.is_granted, n.face_value_fen, n.funded_fen)
                             = (s.partner_no, s.category, s.is_granted, s.face_value_fen, s.funded_fen)),
           s.quantity - stock_issued_of(s.stock_no)::integer, s.funded_fen
      FROM stock s WHERE s.round_no = p_from AND NOT EXISTS (SELECT FROM rollover_stock r WHERE r.from_stock_no = s.stock_no)
$$;

-- Money that finance returned to a campaign's BUDGET and that raised no round's budget yet.
CREATE FUNCTION unrolled_returns(p_campaign_no smallint) RETURNS SETOF fund_return
    LANGUAGE sql STABLE AS $$
    SELECT f.* FROM fund_return f
     WHERE f.campaign_no = p_campaign_no AND f.credit = 'BUDGET'
       AND NOT EXISTS (SELECT FROM rollover_return r WHERE r.campaign_no = f.campaign_no AND r.reference = f.reference)
$$;

-- An edit that is done as it is written down: part of a rollover.
CREATE FUNCTION record_edit(p_stock_no integer, p_units bigint, p_by text, p_why text, p_at timestamptz) RETURNS bigint
    LANGUAGE sql AS $$
    INSERT INTO stock_edit (stock_no, current_quantity, target_quantity, state, asked_by, why, asked_at, done_at)
    SELECT s.stock_no, s.quantity, s.quantity + p_units, 'DONE', p_by, p_why, p_at, p_at FROM stock s WHERE s.stock_no = p_stock_no
    RETURNING edit_no
$$;

-- Rolls a round that is over into another of its campaign: vouchers nobody claimed into the same partner's stock of the same
-- category and value, money that finance returned to BUDGET into the round's budget. The stocks that are over are closed.
-- outcome: ROLLED; REPLAYED when nothing new was left to roll; else why not, with nothing changed. The caller holds the
-- locks of both rounds (4822), all wins of the first are in the books, and p_left is what shards have left of its stocks.
CREATE FUNCTION roll_over(p_from smallint, p_to smallint, p_stock_no integer[], p_shard smallint[], p_left bigint[], p_by text,
                          p_why text, p_at timestamptz, OUT outcome text, OUT detail text, OUT rollover_no integer)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_from     round;
    v_to       round;
    v_carried  bigint;
    v_returned bigint;
    v_short    bigint;
    v_edit_no  bigint;
    v_stock    rollover_stock;
    v_why      text;
BEGIN
    PERFORM FROM round d WHERE d.round_no IN (p_from, p_to) ORDER BY d.round_no FOR UPDATE;
    PERFORM FROM stock s WHERE s.round_no IN (p_from, p_to) ORDER BY s.stock_no FOR UPDATE;
    SELECT * INTO STRICT v_from FROM round d WHERE d.round_no = p_from;
    SELECT * INTO STRICT v_to FROM round d WHERE d.round_no = p_to;
    PERFORM FROM campaign c WHERE c.campaign_no = v_from.campaign_no FOR NO KEY UPDATE;
    outcome := CASE
        WHEN v_from.campaign_no <> v_to.campaign_no OR p_from = p_to THEN 'OTHER_ROUND'
        WHEN EXISTS (SELECT FROM stock s WHERE s.round_no = p_from AND stock_state_at(s.state, v_from.closes_at, p_at) NOT IN ('ENDED', 'CLOSED'))
            THEN 'NOT_ENDED'
        WHEN p_at >= v_to.closes_at THEN 'ENDED'
        WHEN EXISTS (SELECT FROM stock_edit e JOIN stock s USING (stock_no) WHERE e.state = 'PENDING' AND s.round_no IN (p_from, p_to))
            THEN 'PENDING_EDIT' END;
    IF outcome IS NOT NULL THEN
        detail := CASE outcome
            WHEN 'OTHER_ROUND' THEN 'name another round of the same campaign'
            WHEN 'NOT_ENDED' THEN format('round %s is not over', v_from.round_id)
            WHEN 'ENDED' THEN format('round %s is over too', v_to.round_id)
            ELSE 'an edit of a quantity is under way' END;
        RETURN;
    END IF;
    v_carried := coalesce((SELECT sum(u.units * u.funded_fen) FROM unclaimed_units(p_from, p_to) u WHERE u.to_stock_no IS NOT NULL), 0);
    v_returned := coalesce((SELECT sum(f.amount_fen) FROM unrolled_returns(v_from.campaign_no) f), 0);
    IF v_returned = 0 AND NOT EXISTS (SELECT FROM unclaimed_units(p_from, p_to)) THEN
        outcome := 'REPLAYED';
        rollover_no := (SELECT max(r.rollover_no) FROM rollover r WHERE r.from_round_no = p_from);
        RETURN;
    END IF;
    v_short := v_carried - budget_room_fen(p_to, p_from, p_at);
    IF v_short > 0 THEN
        outcome := 'BUDGET_SHORT';
        detail := format('BUDGET is %s fen short of what round %s would give out', v_short, v_to.round_id);
        RETURN;
    END IF;
    INSERT INTO rollover (from_round_no, to_round_no, carried_fen, returned_fen, rolled_by, why, rolled_at)
    VALUES (p_from, p_to, v_carried, v_returned, p_by, p_why, p_at) RETURNING rollover.rollover_no INTO rollover_no;
    INSERT INTO rollover_return (campaign_no, reference, rollover_no)
    SELECT f.campaign_no, f.reference, roll_over.rollover_no FROM unrolled_returns(v_from.campaign_no) f;
    INSERT INTO rollover_stock (from_stock_no, rollover_no, to_stock_no, units)
    SELECT u.from_stock_no, roll_over.rollover_no, u.to_stock_no, u.units FROM unclaimed_units(p_from, p_to) u;
    v_why := format('rollover %s', rollover_no);
    FOR v_stock IN SELECT * FROM rollover_stock r WHERE r.rollover_no = roll_over.rollover_no AND r.units > 0 ORDER BY r.from_stock_no LOOP
        v_edit_no := record_edit(v_stock.from_stock_no, -v_stock.units, p_by, v_why, p_at);
        PERFORM add_adjustments(v_edit_no, array_agg(l.shard ORDER BY l.shard), array_agg(-l.units ORDER BY l.shard))
           FROM unnest(p_stock_no, p_shard, p_left) AS l(stock_no, shard, units) WHERE l.stock_no = v_stock.from_stock_no HAVING count(*) > 0;
        UPDATE stock_adjustment a SET applied = a.delta WHERE a.edit_no = v_edit_no;
        PERFORM change_quantity(v_stock.from_stock_no, -v_stock.units);
        IF v_stock.to_stock_no IS NOT NULL THEN
            v_edit_no := record_edit(v_stock.to_stock_no, v_stock.units, p_by, v_why, p_at);
            PERFORM deal_units(v_edit_no, v_stock.units);
            PERFORM change_quantity(v_stock.to_stock_no, v_stock.units);
        END IF;
    END LOOP;
    UPDATE round d SET budget_fen = d.budget_fen - v_carried WHERE d.round_no = p_from;
    UPDATE round d SET budget_fen = d.budget_fen + v_carried + v_returned WHERE d.round_no = p_to;
    INSERT INTO stock_move (stock_no, verb, from_state, to_state, moved_by, why, moved_at)
    SELECT s.stock_no, 'CLOSE', 'ENDED', 'CLOSED', p_by, v_why, p_at
      FROM stock s WHERE s.round_no = p_from AND s.state <> 'CLOSED' ORDER BY s.stock_no;
    UPDATE stock s SET state = 'CLOSED' WHERE s.round_no = p_from AND s.state <> 'CLOSED';
    outcome := 'ROLLED';
END $$;

SELECT make_append_only(t) FROM unnest(ARRAY['stock_move', 'rollover', 'rollover_stock', 'rollover_return']::regclass[]) AS t;

REVOKE EXECUTE ON FUNCTION stock_state_at, stock_transitions, stock_issued_of, move_stock, budget_room_fen, add_adjustments, deal_units,
    change_quantity, edit_stock, ask_back, note_given, finish_edit, unclaimed_units, unrolled_returns, record_edit, roll_over FROM PUBLIC;

GRANT SELECT ON operator, stock_move, stock_edit, stock_adjustment, rollover, rollover_stock, rollover_return
   TO hanquan_operator, hanquan_finance, hanquan_auditor;
GRANT SELECT ON operator, stock_edit, stock_adjustment TO hanquan_issuer;
GRANT SELECT ON operator TO hanquan_redemption;
GRANT INSERT ON operator TO hanquan_operator;
GRANT EXECUTE ON FUNCTION stock_state_at TO hanquan_operator, hanquan_issuer, hanquan_finance, hanquan_auditor;
GRANT EXECUTE ON FUNCTION stock_transitions, stock_issued_of, move_stock, budget_room_fen, edit_stock, ask_back, note_given,
    finish_edit, roll_over TO hanquan_operator;
GRANT EXECUTE ON FUNCTION ask_back, note_given, finish_edit TO hanquan_issuer; -- ends what an operator began
