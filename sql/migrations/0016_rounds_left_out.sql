-- A batch leaves out the tables of rounds that it is not about before it begins. A city has fifteen rounds and more, each
-- with tables of its own, and a statement that finds out on the way opens them all.

CREATE FUNCTION below_id(p_at timestamptz, p_voucher_id bigint) RETURNS bigint
    LANGUAGE sql STABLE AS $$
    SELECT greatest((SELECT max(d.round_no) FROM round d WHERE d.opens_at <= p_at + interval '1 day')::bigint, p_voucher_id >> 38) + 1 << 38 $$;
COMMENT ON FUNCTION below_id IS 'No voucher from this number on can have been used at p_at: its round opens more than a day later, and clocks agree better.';

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
    -- Where these vouchers' rows are, and where any row with a number may be: known before a statement begins, so that it
    -- touches no other round's tables.
    v_first    bigint := (SELECT min(i) FROM unnest(p_voucher_id) AS i);
    v_last     bigint := (SELECT max(i) FROM unnest(p_voucher_id) AS i);
    v_below    bigint := below_id(p_at, v_last);
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
                                  AND r.voucher_id >= p_oldest AND r.voucher_id < v_below AND r.merchant_no = a.merchant_no AND r.use_request_no = a.request_no
                                  AND r.voucher_id <> a.voucher_id) END
                  OR v_numbers AND a.is_use_here AND EXISTS (SELECT FROM request_number n
                        WHERE n.bucket = p_bucket AND n.request_key = a.request_key AND (n.voucher_id, n.body_hash) <> (a.voucher_id, a.body_hash))
                    THEN 'MISMATCH'
                WHEN a.expires_at IS NULL AND last.is_mine THEN CASE WHEN last.is_same THEN 'REPLAYED' ELSE 'MISMATCH' END
                WHEN a.expires_at IS NOT NULL AND held.is_mine THEN CASE WHEN held.is_same THEN 'REPLAYED' ELSE 'MISMATCH' END
                WHEN a.is_order_here AND (EXISTS (SELECT FROM redemption r
                        WHERE number_hash(r.order_no, r.merchant_no) = number_hash(a.order_no, a.merchant_no) AND r.bucket = p_bucket
                          AND r.voucher_id >= p_oldest AND r.voucher_id < v_below AND r.merchant_no = a.merchant_no AND r.order_no = a.order_no
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
          LEFT JOIN voucher v ON v.bucket = p_bucket AND v.voucher_id = a.voucher_id AND v.voucher_id BETWEEN v_first AND v_last
          LEFT JOIN LATERAL (SELECT r.attempt, r.redeemed_at, r.merchant_no = a.merchant_no AND r.use_request_no = a.request_no AS is_mine,
                    (r.order_no, r.bill_fen) = (a.order_no, a.bill_fen) AS is_same,
                    (SELECT f.credit FROM refund f WHERE f.bucket = p_bucket AND f.voucher_id = r.voucher_id AND f.attempt = r.attempt
                        AND f.voucher_id BETWEEN v_first AND v_last
                      LIMIT 1) AS credit
                FROM redemption r WHERE r.bucket = p_bucket AND r.voucher_id = a.voucher_id AND r.voucher_id BETWEEN v_first AND v_last
                ORDER BY r.merchant_no = a.merchant_no AND r.use_request_no = a.request_no AND a.expires_at IS NULL DESC, r.attempt DESC LIMIT 1) last ON true
          LEFT JOIN LATERAL (SELECT h.attempt, h.held_at, h.expires_at AS held_until,
                    h.merchant_no = a.merchant_no AND h.hold_request_no = a.request_no AS is_mine,
                    (h.order_no, h.bill_fen) = (a.order_no, a.bill_fen) AS is_same,
                    h.expires_at > p_at AND NOT EXISTS (SELECT FROM hold_end e
                        WHERE e.bucket = p_bucket AND e.voucher_id = h.voucher_id AND e.attempt = h.attempt
                          AND e.voucher_id BETWEEN v_first AND v_last) AS is_live
                FROM hold h WHERE v_holds AND h.bucket = p_bucket AND h.voucher_id = a.voucher_id AND h.voucher_id BETWEEN v_first AND v_last
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
          JOIN voucher v ON v.bucket = p_bucket AND v.voucher_id = j.voucher_id AND v.voucher_id BETWEEN v_first AND v_last
          JOIN stock k ON k.stock_no = j.stock_no JOIN round d ON d.round_no = k.round_no
         WHERE j.outcome = 'DONE' AND EXISTS (SELECT FROM redeem_cap c WHERE c.campaign_no = d.campaign_no);
    END IF;
    IF EXISTS (SELECT FROM callback_subscription WHERE is_active) THEN
        PERFORM tell_partners(p_bucket, p_at, 'USED', p_voucher_id, v_attempt, NULL, v_told);
    END IF;
    RETURN QUERY SELECT j.item, j.outcome, j.booked_at, j.expires_at
      FROM unnest(v_outcome, v_at, v_until) WITH ORDINALITY AS j(outcome, booked_at, expires_at, item);
END $$;

REVOKE EXECUTE ON FUNCTION below_id FROM PUBLIC;
GRANT EXECUTE ON FUNCTION below_id TO hanquan_redemption;
