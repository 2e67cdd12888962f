-- Queries of sql/migrate.py. Roles are made by sql/roles.sql, tables by sql/migrations.

-- name: lock
-- Waits until no other migrator is at work in this database; held by the connection.
SELECT pg_advisory_lock(hashtext('hanquan.migrate'))

-- name: unlock
-- Lets the next migrator begin.
SELECT pg_advisory_unlock(hashtext('hanquan.migrate'))

-- name: create_journal
-- Makes the table that says which migrations this database has seen.
CREATE TABLE IF NOT EXISTS schema_migration (
    version         integer     PRIMARY KEY CHECK (version > 0),
    name            text        NOT NULL,
    checksum_sha256 text        NOT NULL CHECK (checksum_sha256 ~ '^[0-9a-f]{64}$'),
    applied_at      timestamptz NOT NULL DEFAULT now()
)

-- name: select_applied
-- Lists what was applied, oldest first.
SELECT version, name, checksum_sha256 FROM schema_migration ORDER BY version

-- name: insert_applied
-- Notes a migration in the transaction that makes it.
INSERT INTO schema_migration (version, name, checksum_sha256) VALUES ($1, $2, $3)

-- name: alter_password
-- Builds, quoted by the server, the statement that sets a role's password.
SELECT format('ALTER ROLE %I PASSWORD %L', $1::text, $2::text)
