-- Queries of issuer/campaign/load.py and catalogue.py. Loading runs as hanquan_operator, in one transaction.

-- name: lock_loading
-- One campaign is loaded at a time, so that no two take the same round number.
SELECT pg_advisory_xact_lock(4821)

-- name: is_loaded
-- Whether a campaign of this name was loaded before.
SELECT EXISTS (SELECT FROM campaign WHERE campaign_id = $1)

-- name: highest_round_no
-- The highest round number in use, 0 when there is none. Rounds are never deleted.
SELECT coalesce(max(round_no), 0)::integer FROM round

-- name: insert_partners
-- Adds the partners that are new; a known one stays as it is.
INSERT INTO partner (partner_id, name_zh, name_en, claims_per_s_max)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::integer[])
ON CONFLICT (partner_id) DO NOTHING

-- name: insert_campaign
-- Adds a campaign with its file, letter by letter.
INSERT INTO campaign (campaign_id, title_zh, title_en, fund_fen, document, loaded_at, face_fen_per_person_max)
VALUES ($1, $2, $3, $4, $5, $6, $7)
RETURNING campaign_no

-- name: insert_category_names
-- What a campaign ($1) calls its categories.
INSERT INTO category_name (campaign_no, category, name_zh, name_en) SELECT $1, * FROM unnest($2::text[], $3::text[], $4::text[])

-- name: insert_redeem_caps
-- What one person may use of a campaign's ($1) vouchers.
INSERT INTO redeem_cap (campaign_no, period, is_per_partner, face_fen_max) SELECT $1, * FROM unnest($2::text[]::cap_period[], $3::boolean[], $4::bigint[])

-- name: merchant_nos
-- The numbers of merchants by their ids, of those that are enrolled.
SELECT merchant_id, merchant_no FROM merchant WHERE merchant_id = ANY ($1::text[])

-- name: insert_stock_districts
-- Districts in whose shops stocks are good.
INSERT INTO stock_district (stock_no, district) SELECT * FROM unnest($1::integer[], $2::text[])

-- name: insert_stock_merchants
-- Shops in which stocks are good.
INSERT INTO stock_merchant (stock_no, merchant_no) SELECT * FROM unnest($1::integer[], $2::integer[])

-- name: insert_rounds
-- Adds the rounds of a campaign.
INSERT INTO round (round_no, campaign_no, round_id, opens_at, closes_at, budget_fen, per_person_and_partner_limit, per_person_limit)
SELECT r.round_no, $1, r.round_id, r.opens_at, r.closes_at, r.budget_fen, $2, $3
  FROM unnest($4::smallint[], $5::text[], $6::timestamptz[], $7::timestamptz[], $8::bigint[])
       AS r(round_no, round_id, opens_at, closes_at, budget_fen)

-- name: insert_groups
-- Adds the groups of a campaign, numbered in order, to each of its rounds ($1).
INSERT INTO claim_group (round_no, group_no, group_id, per_person_limit)
SELECT r.round_no, g.group_no, g.group_id, g.per_person_limit
  FROM unnest($1::smallint[]) AS r(round_no)
 CROSS JOIN unnest($2::text[], $3::smallint[]) WITH ORDINALITY AS g(group_id, per_person_limit, group_no)

-- name: insert_stocks
-- Adds the stocks of one round ($1, $2 to $3 the validity); what a round's stocks share comes once.
INSERT INTO stock (round_no, valid_from, valid_until, city_bp, platform_bp, merchant_bp, refund_policy,
                   stock_id, partner_no, category, quantity, face_value_fen, transaction_minimum_fen, funded_fen, group_no, is_granted, state,
                   valid_days, stacks_with, till_code)
SELECT $1, $2, $3, $4, $5, $6, $7,
       s.stock_id, p.partner_no, s.category, s.quantity, s.face_value_fen, s.transaction_minimum_fen, s.funded_fen,
       g.group_no, s.is_granted, $17::stock_state, $18, $19::text[], $20
  FROM unnest($8::text[], $9::text[], $10::text[], $11::integer[], $12::bigint[], $13::bigint[], $14::bigint[], $15::text[],
              $16::boolean[])
       WITH ORDINALITY AS s(stock_id, partner_id, category, quantity, face_value_fen, transaction_minimum_fen, funded_fen,
                            group_id, is_granted, item)
  JOIN partner p USING (partner_id)
  LEFT JOIN claim_group g ON g.round_no = $1 AND g.group_id = s.group_id
 ORDER BY s.item
RETURNING stock_id, stock_no

-- name: insert_packs
-- Adds the packs of one round.
INSERT INTO pack (round_no, pack_id, partner_no, group_no, is_granted)
SELECT $1, k.pack_id, p.partner_no, g.group_no, k.is_granted
  FROM unnest($2::text[], $3::text[], $4::text[], $5::boolean[])
       WITH ORDINALITY AS k(pack_id, partner_id, group_id, is_granted, item)
  JOIN partner p USING (partner_id)
  LEFT JOIN claim_group g ON g.round_no = $1 AND g.group_id = k.group_id
 ORDER BY k.item
RETURNING pack_id, pack_no

-- name: insert_pack_items
-- Adds what packs are made of.
INSERT INTO pack_item (pack_no, stock_no, quantity) SELECT * FROM unnest($1::integer[], $2::integer[], $3::smallint[])

-- name: insert_stages
-- Adds how the stocks of rounds are released.
INSERT INTO release_stage (round_no, after_s, share_bp) SELECT * FROM unnest($1::smallint[], $2::integer[], $3::smallint[])

-- name: open_round_storage
-- Makes the partitions of the voucher tables for these rounds.
SELECT open_round_storage(round_no) FROM unnest($1::smallint[]) AS round_no

-- name: fund
-- Books the city's money into the campaign's budget.
INSERT INTO transfer (bucket, campaign_no, kind, debit, credit, amount_fen, reference, booked_at)
VALUES (0, $1, 'FUND', 'CITY_FUND', 'BUDGET', $2, $3, $4)

-- name: insert_city
-- Writes the constants of the installation, once and for all.
INSERT INTO city (buckets, shards) VALUES ($1, $2) ON CONFLICT (singleton) DO NOTHING

-- name: city
-- The constants of the installation.
SELECT buckets, shards FROM city

-- name: all_rounds
-- Every round of every campaign, in order of opening.
SELECT r.round_no, r.round_id, r.campaign_no, c.campaign_id, r.opens_at, r.closes_at, r.budget_fen, r.per_person_and_partner_limit
  FROM round r JOIN campaign c USING (campaign_no)
 ORDER BY r.opens_at, r.round_no

-- name: all_stocks
-- Every stock with the id of its partner.
SELECT s.stock_no, s.stock_id, s.round_no, s.partner_no, p.partner_id, s.category, s.quantity, s.face_value_fen,
       s.transaction_minimum_fen, s.city_bp, s.platform_bp, s.merchant_bp, s.funded_fen, s.valid_from, s.valid_until,
       s.refund_policy, s.state::text
  FROM stock s JOIN partner p USING (partner_no)
 ORDER BY s.stock_no
