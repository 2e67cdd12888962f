-- Batches judge first and write afterwards, in statements of their own: a SELECT into arrays, item by item, then plain
-- INSERTs from them. What is not there to be written costs nothing, and on several nodes (docs/citus.md) each statement
-- stays on the node of its bucket, where one that writes in a WITH would ask them all.

CREATE FUNCTION expired_stocks(p_bucket smallint, p_stock_no integer[]) RETURNS integer[]
    LANGUAGE sql STABLE AS $$
    SELECT ARRAY(SELECT s.stock_no FROM (SELECT DISTINCT unnest(p_stock_no)) AS s(stock_no) WHERE is_stock_expired(p_bucket, s.stock_no)) $$;
COMMENT ON FUNCTION expired_stocks IS 'Those of the stocks whose money went back to the budget: asked once a batch, not once an item.';

-- Puts what happened into the outbox, for each partner that wants to hear of it. p_stock_no: null where there is nothing to tell.
CREATE FUNCTION tell_partners(p_bucket smallint, p_at timestamptz, p_kind callback_kind,
        p_voucher_id bigint[], p_attempt smallint[], p_part smallint[], p_stock_no integer[]) RETURNS void
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    v_voucher_id  bigint[];
    v_attempt     smallint[];
    v_part        smallint[];
    v_partner_no  smallint[];
BEGIN
    SELECT array_agg(j.voucher_id), array_agg(j.attempt), array_agg(j.part), array_agg(c.partner_no)
      INTO v_voucher_id, v_attempt, v_part, v_partner_no
      FROM unnest(p_voucher_id, p_attempt, p_part, p_stock_no) AS j(voucher_id, attempt, part, stock_no)
      JOIN stock k ON k.stock_no = j.stock_no JOIN callback_subscription c ON c.partner_no = k.partner_no
     WHERE c.is_active AND p_kind = ANY (c.kinds);
    INSERT INTO callback_event (bucket, voucher_id, attempt, part, kind, partner_no, happened_at, next_at)
    SELECT p_bucket, j.voucher_id, j.attempt, coalesce(j.part, 0::smallint), p_kind, j.partner_no, p_at, p_at
      FROM unnest(v_voucher_id, v_attempt, v_part, v_partner_no) AS j(voucher_id, attempt, part, partner_no);
END $$;

-- Redeems vouchers of one bucket, or holds them (p_expires_at not null): each item judged on its own, all committed
-- together. No two items of a call have a voucher, a number, a payment or a person in common.
-- A connection keeps the plan it made when the tables were still empty; SET makes that plan one by keys.
-- The caller has checked the offer's rules (they never change); here only what another request may have changed is
-- decided. p_is_use_here, p_is_order_here: this bucket is the number's own, so it is looked at here; otherwise it is
-- registered in its own. p_taken_at, p_taken_on: moment and business day of the use; p_is_offline: the till's word, not ours.
-- Array position = item number in the answer, from 1. An array that is empty reads as nulls, which say no.
CREATE OR REPLACE FUNCTION redeem_batch(p_bucket smallint, p_at timestamptz, p_oldest bigint,
        p_voucher_id bigint[], p_stock_no integer[], p_merchant_no integer[], p_terminal_no integer[],
        p_bill_fen bigint[], p_subsidy_fen bigint[], p_request_no text[], p_order_no text[], p_expires_at timestamptz[],
        p_request_key uuid[], p_order_key uuid[], p_body_hash bigint[], p_is_use_here boolean[], p_is_order_here boolean[],
        p_taken_at timestamptz[], p_taken_on date[], p_is_offline boolean[])
    RETURNS TABLE (item bigint, outcome till_outcome, booked_at timestamptz, expires_at timestamptz)
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    v_open     date; -- the first day that is not closed
    v_holds    boolean; -- asked once: while nobody holds anything, nobody looks
    v_numbers  boolean;
    v_caps     boolean;
    v_expired  integer[];
    v_outcome  till_outcome[]; -- these five by item
    v_attempt  smallint[];
    v_at       timestamptz[];
    v_until    timestamptz[];
    v_told     integer[]; -- the stock of what partners are told of
BEGIN
    PERFORM lock_bucket(p_bucket);
    v_open := first_open_day(p_bucket, '-infinity');
    v_holds := EXISTS (SELECT FROM hold WHERE bucket = p_bucket);
    v_numbers := EXISTS (SELECT FROM request_number WHERE bucket = p_bucket);
    v_caps := EXISTS (SELECT FROM redeem_cap);
    v_expired := expired_stocks(p_bucket, p_stock_no);

    SELECT array_agg(j.outcome ORDER BY j.item), array_agg(j.attempt ORDER BY j.item),
           array_agg(CASE WHEN j.outcome <> 'REPLAYED' THEN j.taken_at WHEN j.is_hold THEN j.held_at ELSE j.mine_at END ORDER BY j.item),
           array_agg(CASE WHEN j.outcome = 'REPLAYED' AND j.is_hold THEN j.held_until ELSE j.expires_at END ORDER BY j.item),
           array_agg(CASE WHEN j.outcome = 'DONE' AND NOT j.is_hold THEN j.stock_no END ORDER BY j.item)
      INTO v_outcome, v_attempt, v_at, v_until, v_told
      FROM (
        SELECT a.item, a.stock_no, a.taken_at, a.expires_at, a.expires_at IS NOT NULL AS is_hold, last.redeemed_at AS mine_at, held.held_at, held.held_until,
               (greatest(last.attempt, held.attempt, 0::smallint) + 1)::smallint AS attempt,
               (CASE
                WHEN CASE WHEN a.is_use_here IS NOT TRUE THEN false
                          WHEN a.expires_at IS NOT NULL THEN is_hold_taken(p_bucket, p_oldest, a.merchant_no, a.request_no, a.voucher_id)
                          ELSE EXISTS (SELECT FROM redemption r
                                WHERE number_hash(r.use_request_no, r.merchant_no) = number_hash(a.request_no, a.merchant_no) AND r.bucket = p_bucket
                                  AND r.voucher_id >= p_oldest AND r.merchant_no = a.merchant_no AND r.use_request_no = a.request_no
                                  AND r.voucher_id <> a.voucher_id) END
                  OR v_numbers AND a.is_use_here AND EXISTS (SELECT FROM request_number n
                        WHERE n.bucket = p_bucket AND n.request_key = a.request_key AND (n.voucher_id, n.body_hash) <> (a.voucher_id, a.body_hash))
                    THEN 'MISMATCH'
                WHEN a.expires_at IS NULL AND last.is_mine THEN CASE WHEN last.is_same THEN 'REPLAYED' ELSE 'MISMATCH' END
                WHEN a.expires_at IS NOT NULL AND held.is_mine THEN CASE WHEN held.is_same THEN 'REPLAYED' ELSE 'MISMATCH' END
                WHEN a.is_order_here AND (EXISTS (SELECT FROM redemption r
                        WHERE number_hash(r.order_no, r.merchant_no) = number_hash(a.order_no, a.merchant_no) AND r.bucket = p_bucket
                          AND r.voucher_id >= p_oldest AND r.merchant_no = a.merchant_no AND r.order_no = a.order_no
                          AND r.voucher_id <> a.voucher_id)
                    OR v_holds AND is_order_taken(p_bucket, p_oldest, a.merchant_no, a.order_no, a.voucher_id)
                    OR v_numbers AND EXISTS (SELECT FROM request_number n
                        WHERE n.bucket = p_bucket AND n.request_key = a.order_key AND n.voucher_id <> a.voucher_id))
                    THEN 'ORDER_TAKEN'
                WHEN v.person IS NULL THEN 'CONFIRMING'
                WHEN last.attempt IS NOT NULL AND last.credit IS NULL THEN 'USED'
                WHEN last.credit = 'RETURNED' THEN 'RETURNED'
                WHEN held.is_live AND held.attempt > coalesce(last.attempt, 0) THEN 'HELD'
                WHEN a.stock_no = ANY (v_expired) THEN 'EXPIRED'
                WHEN v_caps THEN coalesce(cap_broken(p_bucket, p_at, a.taken_on, v.person, a.stock_no)::text, 'DONE')
                ELSE 'DONE' END)::till_outcome AS outcome
          FROM unnest(p_voucher_id, p_stock_no, p_merchant_no, p_bill_fen, p_request_no, p_order_no, p_expires_at, p_request_key, p_order_key,
                      p_body_hash, p_is_use_here, p_is_order_here, p_taken_at, p_taken_on) WITH ORDINALITY
            AS a(voucher_id, stock_no, merchant_no, bill_fen, request_no, order_no, expires_at, request_key, order_key,
                 body_hash, is_use_here, is_order_here, taken_at, taken_on, item)
          LEFT JOIN voucher v ON v.bucket = p_bucket AND v.voucher_id = a.voucher_id
          LEFT JOIN LATERAL (SELECT r.attempt, r.redeemed_at, r.merchant_no = a.merchant_no AND r.use_request_no = a.request_no AS is_mine,
                    (r.order_no, r.bill_fen) = (a.order_no, a.bill_fen) AS is_same,
                    (SELECT f.credit FROM refund f WHERE f.bucket = p_bucket AND f.voucher_id = r.voucher_id AND f.attempt = r.attempt
                      LIMIT 1) AS credit
                FROM redemption r WHERE r.bucket = p_bucket AND r.voucher_id = a.voucher_id
                ORDER BY r.merchant_no = a.merchant_no AND r.use_request_no = a.request_no AND a.expires_at IS NULL DESC, r.attempt DESC LIMIT 1) last ON true
          LEFT JOIN LATERAL (SELECT h.attempt, h.held_at, h.expires_at AS held_until,
                    h.merchant_no = a.merchant_no AND h.hold_request_no = a.request_no AS is_mine,
                    (h.order_no, h.bill_fen) = (a.order_no, a.bill_fen) AS is_same,
                    h.expires_at > p_at AND NOT EXISTS (SELECT FROM hold_end e
                        WHERE e.bucket = p_bucket AND e.voucher_id = h.voucher_id AND e.attempt = h.attempt) AS is_live
                FROM hold h WHERE v_holds AND h.bucket = p_bucket AND h.voucher_id = a.voucher_id
                ORDER BY h.merchant_no = a.merchant_no AND h.hold_request_no = a.request_no AND a.expires_at IS NOT NULL DESC,
                         h.attempt DESC LIMIT 1) held ON true
      ) j;

    INSERT INTO redemption (voucher_id, subsidy_fen, bill_fen, redeemed_at, stock_no, merchant_no, terminal_no,
                            booked_on, bucket, attempt, use_request_no, order_no)
    SELECT j.voucher_id, j.subsidy_fen, j.bill_fen, j.taken_at, j.stock_no, j.merchant_no, j.terminal_no,
           greatest(j.taken_on, v_open), p_bucket, j.attempt, j.request_no, j.order_no
      FROM unnest(p_voucher_id, p_subsidy_fen, p_bill_fen, p_taken_at, p_stock_no, p_merchant_no, p_terminal_no, p_taken_on,
                  v_attempt, p_request_no, p_order_no, p_expires_at, v_outcome)
        AS j(voucher_id, subsidy_fen, bill_fen, taken_at, stock_no, merchant_no, terminal_no, taken_on,
             attempt, request_no, order_no, expires_at, outcome)
     WHERE j.outcome = 'DONE' AND j.expires_at IS NULL ORDER BY j.voucher_id;
    IF true = ANY (p_is_offline) THEN
        INSERT INTO offline_use (voucher_id, uploaded_at, bucket, attempt)
        SELECT j.voucher_id, p_at, p_bucket, j.attempt
          FROM unnest(p_voucher_id, v_attempt, v_outcome, p_is_offline) AS j(voucher_id, attempt, outcome, is_offline)
         WHERE j.outcome = 'DONE' AND j.is_offline;
    END IF;
    IF array_remove(p_expires_at, NULL) <> '{}' THEN
        INSERT INTO hold (voucher_id, subsidy_fen, bill_fen, held_at, expires_at, stock_no, merchant_no, terminal_no,
                          bucket, attempt, hold_request_no, order_no)
        SELECT j.voucher_id, j.subsidy_fen, j.bill_fen, j.taken_at, j.expires_at, j.stock_no, j.merchant_no, j.terminal_no,
               p_bucket, j.attempt, j.request_no, j.order_no
          FROM unnest(p_voucher_id, p_subsidy_fen, p_bill_fen, p_taken_at, p_expires_at, p_stock_no, p_merchant_no, p_terminal_no,
                      v_attempt, p_request_no, p_order_no, v_outcome)
            AS j(voucher_id, subsidy_fen, bill_fen, taken_at, expires_at, stock_no, merchant_no, terminal_no,
                 attempt, request_no, order_no, outcome)
         WHERE j.outcome = 'DONE' AND j.expires_at IS NOT NULL ORDER BY j.voucher_id;
    END IF;
    IF v_caps THEN
        INSERT INTO person_use (voucher_id, person_hash, used_on, bucket, attempt)
        SELECT j.voucher_id, person_hash(v.person), j.taken_on, p_bucket, j.attempt
          FROM unnest(p_voucher_id, p_stock_no, p_taken_on, v_attempt, v_outcome) AS j(voucher_id, stock_no, taken_on, attempt, outcome)
          JOIN voucher v ON v.bucket = p_bucket AND v.voucher_id = j.voucher_id
          JOIN stock k ON k.stock_no = j.stock_no JOIN round d ON d.round_no = k.round_no
         WHERE j.outcome = 'DONE' AND EXISTS (SELECT FROM redeem_cap c WHERE c.campaign_no = d.campaign_no);
    END IF;
    IF EXISTS (SELECT FROM callback_subscription WHERE is_active) THEN
        PERFORM tell_partners(p_bucket, p_at, 'USED', p_voucher_id, v_attempt, NULL, v_told);
    END IF;
    RETURN QUERY SELECT j.item, j.outcome, j.booked_at, j.expires_at
      FROM unnest(v_outcome, v_at, v_until) WITH ORDINALITY AS j(outcome, booked_at, expires_at, item);
END $$;

-- Ends holds of one bucket: confirms them (p_use_request_no not null: the redemption's number), or cancels them. No two items
-- of a call have a hold or a number in common. Answers when the hold ended, which for one that ran out is its limit.
CREATE OR REPLACE FUNCTION end_holds(p_bucket smallint, p_at timestamptz, p_day date, p_oldest bigint,
        p_voucher_id bigint[], p_merchant_no integer[], p_hold_request_no text[], p_use_request_no text[], p_cancel_request_no text[],
        p_request_key uuid[], p_body_hash bigint[], p_is_use_here boolean[])
    RETURNS TABLE (item bigint, outcome till_outcome, ended_at timestamptz)
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    v_day      date;
    v_outcome  till_outcome[]; -- these six by item; the attempt and the outcome before are null where there is none
    v_attempt  smallint[];
    v_ended    hold_outcome[];
    v_at       timestamptz[];
    v_over_at  timestamptz[];
    v_told     integer[]; -- the stock of what partners are told of
BEGIN
    PERFORM lock_bucket(p_bucket);
    v_day := first_open_day(p_bucket, p_day);

    SELECT array_agg(j.outcome ORDER BY j.item), array_agg(j.attempt ORDER BY j.item), array_agg(j.ended ORDER BY j.item),
           array_agg(CASE j.outcome WHEN 'DONE' THEN greatest(p_at, j.held_at) -- this worker's clock may lag behind that of the one who held
                                    WHEN 'RUN_OUT' THEN j.expires_at ELSE j.ended_then END ORDER BY j.item),
           array_agg(greatest(p_at, j.expires_at) ORDER BY j.item),
           array_agg(CASE WHEN j.outcome = 'DONE' AND j.is_confirm THEN j.stock_no END ORDER BY j.item)
      INTO v_outcome, v_attempt, v_ended, v_at, v_over_at, v_told
      FROM (
        SELECT a.item, a.use_request_no IS NOT NULL AS is_confirm, h.stock_no, h.attempt, h.held_at, h.expires_at, e.outcome AS ended, e.ended_at AS ended_then,
               (CASE
                WHEN h.voucher_id IS NULL THEN 'NOT_FOUND'
                WHEN a.use_request_no IS NOT NULL AND (
                    a.is_use_here AND is_use_taken(p_bucket, p_oldest, a.merchant_no, a.use_request_no, a.voucher_id)
                 OR a.is_use_here AND EXISTS (SELECT FROM request_number n WHERE n.bucket = p_bucket AND n.request_key = a.request_key
                        AND (n.voucher_id, n.body_hash) <> (a.voucher_id, a.body_hash))
                 OR EXISTS (SELECT FROM redemption r WHERE r.bucket = p_bucket AND r.voucher_id = a.voucher_id
                        AND r.merchant_no = a.merchant_no AND r.use_request_no = a.use_request_no AND r.attempt IS DISTINCT FROM h.attempt))
                    THEN 'MISMATCH'
                WHEN e.outcome = 'CONFIRMED' AND e.request_no = a.use_request_no THEN 'REPLAYED'
                WHEN e.outcome = 'CANCELLED' AND e.ended_at >= h.expires_at THEN 'RUN_OUT'
                WHEN e.outcome = 'CANCELLED' AND e.request_no = a.cancel_request_no THEN 'REPLAYED'
                WHEN e.outcome IS NOT NULL THEN e.outcome::text
                WHEN h.expires_at <= p_at OR is_stock_expired(p_bucket, h.stock_no)
                  OR EXISTS (SELECT FROM hold n WHERE n.bucket = p_bucket AND n.voucher_id = h.voucher_id AND n.attempt > h.attempt)
                  OR EXISTS (SELECT FROM redemption n WHERE n.bucket = p_bucket AND n.voucher_id = h.voucher_id AND n.attempt > h.attempt)
                    THEN 'RUN_OUT'
                ELSE 'DONE' END)::till_outcome AS outcome
          FROM unnest(p_voucher_id, p_merchant_no, p_hold_request_no, p_use_request_no, p_cancel_request_no,
                      p_request_key, p_body_hash, p_is_use_here) WITH ORDINALITY
            AS a(voucher_id, merchant_no, hold_request_no, use_request_no, cancel_request_no, request_key, body_hash, is_use_here, item)
          LEFT JOIN LATERAL (SELECT i.* FROM hold i WHERE i.bucket = p_bucket AND i.voucher_id = a.voucher_id
                AND i.merchant_no = a.merchant_no AND i.hold_request_no = a.hold_request_no) h ON true
          LEFT JOIN hold_end e ON e.bucket = p_bucket AND e.voucher_id = h.voucher_id AND e.attempt = h.attempt
      ) j;

    INSERT INTO redemption (voucher_id, subsidy_fen, bill_fen, redeemed_at, stock_no, merchant_no, terminal_no,
                            booked_on, bucket, attempt, use_request_no, order_no)
    SELECT h.voucher_id, h.subsidy_fen, h.bill_fen, j.done_at, h.stock_no, h.merchant_no, h.terminal_no,
           greatest(v_day, (j.done_at AT TIME ZONE 'Asia/Shanghai')::date), h.bucket, h.attempt, j.use_request_no, h.order_no
      FROM unnest(p_voucher_id, v_attempt, v_outcome, v_at, p_use_request_no) AS j(voucher_id, attempt, outcome, done_at, use_request_no)
      JOIN hold h ON h.bucket = p_bucket AND h.voucher_id = j.voucher_id AND h.attempt = j.attempt
     WHERE j.outcome = 'DONE' AND j.use_request_no IS NOT NULL;
    -- A cancel of what ran out is written, too: no clock that lags may confirm it afterwards.
    INSERT INTO hold_end (voucher_id, ended_at, bucket, attempt, outcome, request_no)
    SELECT j.voucher_id, CASE j.outcome WHEN 'DONE' THEN j.done_at ELSE j.over_at END, p_bucket, j.attempt,
           CASE WHEN j.use_request_no IS NULL THEN 'CANCELLED' ELSE 'CONFIRMED' END::hold_outcome,
           coalesce(j.use_request_no, j.cancel_request_no)
      FROM unnest(p_voucher_id, v_attempt, v_outcome, v_ended, v_at, v_over_at, p_use_request_no, p_cancel_request_no)
        AS j(voucher_id, attempt, outcome, ended, done_at, over_at, use_request_no, cancel_request_no)
     WHERE j.outcome = 'DONE' OR (j.outcome = 'RUN_OUT' AND j.ended IS NULL AND j.cancel_request_no IS NOT NULL);
    IF EXISTS (SELECT FROM callback_subscription WHERE is_active) THEN
        PERFORM tell_partners(p_bucket, p_at, 'USED', p_voucher_id, v_attempt, NULL, v_told);
    END IF;
    RETURN QUERY SELECT j.item, j.outcome, j.ended_at FROM unnest(v_outcome, v_at) WITH ORDINALITY AS j(outcome, ended_at, item);
END $$;

-- Refunds redemptions of one bucket, whole or in part. Each names the redemption by the till's own number, and how many
-- refunds the caller counted on (p_refunds): CHANGED when there are more.
-- No two items of a call have a redemption or a number in common.
CREATE OR REPLACE FUNCTION refund_batch(p_bucket smallint, p_at timestamptz, p_day date,
        p_voucher_id bigint[], p_merchant_no integer[], p_use_request_no text[], p_refund_request_no text[], p_refund_fen bigint[],
        p_subsidy_fen bigint[], p_is_restored boolean[], p_refunds smallint[])
    RETURNS TABLE (item bigint, outcome till_outcome, credit account_kind, subsidy_fen bigint, refunded_at timestamptz)
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    v_day         date;
    v_first_open  date;
    v_outcome     till_outcome[]; -- these six by item
    v_attempt     smallint[];
    v_credit      account_kind[];
    v_fen         bigint[];
    v_at          timestamptz[];
    v_told        integer[]; -- the stock of what partners are told of
BEGIN
    PERFORM lock_bucket(p_bucket);
    v_day := first_open_day(p_bucket, p_day);
    v_first_open := coalesce((SELECT max(c.day) + 1 FROM day_close c WHERE c.bucket = p_bucket), '-infinity');

    SELECT array_agg(j.outcome ORDER BY j.item), array_agg(j.attempt ORDER BY j.item), array_agg(j.goes_to ORDER BY j.item),
           array_agg(j.back_fen ORDER BY j.item), array_agg(j.done_at ORDER BY j.item),
           array_agg(CASE WHEN j.outcome = 'DONE' THEN j.stock_no END ORDER BY j.item)
      INTO v_outcome, v_attempt, v_credit, v_fen, v_at, v_told
      FROM (
        SELECT s.item, s.stock_no, s.attempt, coalesce(s.mine_fen, s.subsidy_fen) AS back_fen, coalesce(s.mine_at, p_at) AS done_at,
               coalesce(s.mine_credit, CASE WHEN s.is_restored AND NOT is_stock_expired(p_bucket, s.stock_no)
                                            THEN 'ISSUED' ELSE 'RETURNED' END::account_kind) AS goes_to,
               (CASE
                WHEN s.attempt IS NULL THEN 'NOT_FOUND'
                WHEN s.mine_at IS NOT NULL THEN 'REPLAYED'
                WHEN s.refunds_now <> s.refunds THEN 'CHANGED'
                WHEN s.earlier_fen + s.subsidy_fen > s.whole_fen THEN 'RETURNED' -- the caller knows; here for good measure
                WHEN s.booked_on < v_day AND refund_room_fen(p_bucket, s.merchant_no, v_first_open) < s.asked_fen THEN 'OVER_LIMIT'
                ELSE 'DONE' END)::till_outcome AS outcome
          FROM (
            SELECT a.item, a.subsidy_fen, a.is_restored, a.refunds, a.merchant_no, r.attempt, r.stock_no, r.booked_on, r.subsidy_fen AS whole_fen,
                   f.credit AS mine_credit, f.subsidy_fen AS mine_fen, f.refunded_at AS mine_at, earlier.refunds_now, earlier.earlier_fen,
                   sum(a.subsidy_fen) FILTER (WHERE r.booked_on < v_day AND f.attempt IS NULL) OVER (PARTITION BY a.merchant_no ORDER BY a.item) AS asked_fen
              FROM unnest(p_voucher_id, p_merchant_no, p_use_request_no, p_refund_request_no, p_subsidy_fen, p_is_restored, p_refunds)
                WITH ORDINALITY AS a(voucher_id, merchant_no, use_request_no, refund_request_no, subsidy_fen, is_restored, refunds, item)
              LEFT JOIN LATERAL (SELECT u.voucher_id, u.attempt, u.stock_no, u.booked_on, u.subsidy_fen FROM redemption u
                    WHERE u.bucket = p_bucket AND u.voucher_id = a.voucher_id
                      AND u.merchant_no = a.merchant_no AND u.use_request_no = a.use_request_no) r ON true
              LEFT JOIN LATERAL (SELECT count(*) AS refunds_now, coalesce(sum(n.subsidy_fen), 0) AS earlier_fen FROM refund n
                    WHERE n.bucket = p_bucket AND n.voucher_id = r.voucher_id AND n.attempt = r.attempt) earlier ON true
              LEFT JOIN refund f ON f.bucket = p_bucket AND f.voucher_id = r.voucher_id AND f.attempt = r.attempt AND f.refund_request_no = a.refund_request_no
          ) s
      ) j;

    INSERT INTO refund (voucher_id, subsidy_fen, refund_fen, refunded_at, stock_no, merchant_no, booked_on,
                        bucket, attempt, credit, refund_request_no, refund_no)
    SELECT r.voucher_id, j.subsidy_fen, j.refund_fen, p_at, r.stock_no, r.merchant_no, v_day,
           r.bucket, r.attempt, j.credit, j.refund_request_no, j.refunds + 1
      FROM unnest(p_voucher_id, v_attempt, v_outcome, v_credit, p_subsidy_fen, p_refund_fen, p_refund_request_no, p_refunds)
        AS j(voucher_id, attempt, outcome, credit, subsidy_fen, refund_fen, refund_request_no, refunds)
      JOIN redemption r ON r.bucket = p_bucket AND r.voucher_id = j.voucher_id AND r.attempt = j.attempt
     WHERE j.outcome = 'DONE' ORDER BY r.voucher_id;
    IF EXISTS (SELECT FROM callback_subscription WHERE is_active) THEN
        PERFORM tell_partners(p_bucket, p_at, 'REFUNDED', p_voucher_id, v_attempt, p_refunds, v_told);
    END IF;
    RETURN QUERY SELECT j.item, j.outcome, j.credit, j.subsidy_fen, j.refunded_at
      FROM unnest(v_outcome, v_credit, v_fen, v_at) WITH ORDINALITY AS j(outcome, credit, subsidy_fen, refunded_at, item);
END $$;

-- How much more of the sales of earlier days may be refunded at a merchant before it owes the city more than agreed.
-- What it is owed for closed days is no room, nor does what one campaign owes it cover what it owes another: a batch may
-- be paying that out right now. Nor is what an earlier day that is still open will bring: it may be closed and paid
-- before the refund is. Refunds on the day of the sale do not count: each takes back its own sale and no more.
CREATE OR REPLACE FUNCTION refund_room_fen(p_bucket smallint, p_merchant_no integer, p_first_open date) RETURNS bigint
    LANGUAGE sql STABLE AS $$
    SELECT ((SELECT m.refund_debt_fen_max FROM merchant m WHERE m.merchant_no = p_merchant_no)
         + coalesce((SELECT sum(least(0, a.credits_fen - a.debits_fen)) FROM account a
                      WHERE a.bucket = p_bucket AND a.merchant_no = p_merchant_no AND a.kind = 'PAYABLE'), 0)
         - coalesce((SELECT sum(f.subsidy_fen) FROM refund f
                       JOIN redemption r ON r.bucket = f.bucket AND r.voucher_id = f.voucher_id AND r.attempt = f.attempt
                      WHERE f.bucket = p_bucket AND f.merchant_no = p_merchant_no AND f.booked_on >= p_first_open
                        AND r.booked_on < f.booked_on), 0))::bigint
$$;

REVOKE EXECUTE ON FUNCTION expired_stocks, tell_partners FROM PUBLIC;
GRANT EXECUTE ON FUNCTION expired_stocks, tell_partners TO hanquan_redemption;
