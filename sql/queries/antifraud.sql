-- Queries of antifraud: flags, holds and blocks, and how far the signals are read.

-- name: lock_cases
-- One writer of cases at a time, until the transaction ends: a second worker is harmless.
SELECT pg_advisory_xact_lock(4818)

-- name: open_flag
-- Opens a case, unless one is open or was closed after this evidence began; answers its number or nothing.
INSERT INTO flag (subject_kind, subject, detector, family, points, reason, seen_from, opened_at)
SELECT $1, $2, $3, $4, $5::smallint, $6::jsonb, $7::timestamptz, $8::timestamptz
 WHERE NOT EXISTS (SELECT FROM flag f WHERE f.subject_kind = $1 AND f.subject = $2 AND f.detector = $3
                                        AND f.closed_at >= $7::timestamptz)
    ON CONFLICT (subject_kind, subject, detector) WHERE closed_at IS NULL DO NOTHING
RETURNING flag_id

-- name: place_hold
-- Keeps a merchant's lines out of settlement, unless it is held for the same reason already.
INSERT INTO merchant_hold (merchant_no, reason_code, reason, placed_at)
SELECT m.merchant_no, $2, $3, $4
  FROM merchant m
 WHERE m.merchant_no = $1
   AND NOT EXISTS (SELECT FROM merchant_held h WHERE h.merchant_no = m.merchant_no AND h.reason_code = $2)
RETURNING hold_id

-- name: open_block
-- Refuses a person for a while, unless they are refused now or were let off after this evidence began.
INSERT INTO person_block (person, points, reason, seen_from, placed_at, expires_at)
SELECT $1::uuid, $2::smallint, $3::jsonb, $4::timestamptz, $5::timestamptz, $6::timestamptz
 WHERE NOT EXISTS (SELECT FROM person_block b WHERE b.person = $1::uuid
                      AND CASE WHEN b.lifted_at IS NULL THEN b.expires_at > $5::timestamptz ELSE b.lifted_at >= $4::timestamptz END)
RETURNING block_id

-- name: blocks_in_force
-- Everybody who is refused now, for the block list in Valkey.
SELECT person, max(expires_at) AS expires_at FROM person_block
 WHERE lifted_at IS NULL AND expires_at > $1 GROUP BY person

-- name: move_position
-- Remembers how far the signals are read; never backwards.
INSERT INTO signal_position AS p (stream, entry_ms, entry_seq) VALUES ($1, $2, $3)
    ON CONFLICT (stream) DO UPDATE SET entry_ms = excluded.entry_ms, entry_seq = excluded.entry_seq
 WHERE (p.entry_ms, p.entry_seq) < (excluded.entry_ms, excluded.entry_seq)

-- name: position
-- How far the signals are read.
SELECT entry_ms, entry_seq FROM signal_position WHERE stream = $1

-- name: shards
-- Number of Valkey shards; no row before the city is set up.
SELECT shards FROM city

-- name: read_flags
-- Flags, newest first: $1 closed ones too, $2 of one merchant_id or NULL, $3 this number only or NULL, $4 at most so many.
SELECT f.flag_id, f.subject_kind, f.subject, f.detector, f.family, f.points, f.reason, f.seen_from, f.opened_at,
       f.closed_at, f.closed_by, f.outcome, f.note, m.merchant_id, m.name AS merchant_name,
       EXISTS (SELECT FROM merchant_held h WHERE h.merchant_no = m.merchant_no) AS is_held
  FROM flag f
  LEFT JOIN merchant m ON f.subject_kind = 'merchant' AND m.merchant_no::text = f.subject
 WHERE ($1::boolean OR f.closed_at IS NULL)
   AND ($2::text IS NULL OR m.merchant_id = $2)
   AND ($3::bigint IS NULL OR f.flag_id = $3)
 ORDER BY f.flag_id DESC LIMIT $4

-- name: merchant_no
-- Our number of a merchant.
SELECT merchant_no FROM merchant WHERE merchant_id = $1

-- name: release_holds
-- Releases every hold of a merchant; who and why stay on record.
INSERT INTO merchant_hold_release (hold_id, released_by, note, released_at)
SELECT h.hold_id, $2, $3, $4 FROM merchant_held h WHERE h.merchant_no = $1
RETURNING hold_id

-- name: close_flags
-- Closes every open case of a subject with one outcome.
UPDATE flag SET closed_at = $3, closed_by = $4, outcome = $5, note = $6
 WHERE subject_kind = $1 AND subject = $2 AND closed_at IS NULL
RETURNING flag_id

-- name: read_blocks
-- People who are refused at a moment, the latest first: $2 at most so many.
SELECT block_id, person, points, reason, seen_from, placed_at, expires_at FROM person_block
 WHERE lifted_at IS NULL AND expires_at > $1 ORDER BY block_id DESC LIMIT $2

-- name: lift_blocks
-- Lets a person off before the penalty expires; who and why stay on record.
UPDATE person_block SET lifted_at = $2, lifted_by = $3, note = $4
 WHERE person = $1 AND lifted_at IS NULL
RETURNING block_id
