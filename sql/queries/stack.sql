-- Queries of stack/: making the database of the one-machine stack.

-- name: database_exists
-- Is the database there already?
SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1::text)

-- name: create_database
-- Makes the database of a new stack.
CREATE DATABASE hanquan
