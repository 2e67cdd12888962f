-- One number for all rows that a query answers, in whatever order they come: see digest_of. Rows are hashed as text,
-- because the hash of a record is linear in its columns': two rows that swap a value would leave the sum as it was.
SELECT coalesce(sum(hashtextextended(answer::text, 0)), 0)::text FROM (
:query
) AS answer
