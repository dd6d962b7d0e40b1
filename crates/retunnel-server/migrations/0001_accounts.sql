CREATE TABLE accounts (
    id         BLOB PRIMARY KEY NOT NULL,
    email      TEXT NOT NULL UNIQUE,
    created_at INTEGER NOT NULL
) WITHOUT ROWID;

-- A token is known by its SHA-256 only. The primary key is the index that every authentication uses.
CREATE TABLE tokens (
    hash       BLOB PRIMARY KEY NOT NULL,
    account    BLOB NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    label      TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER
) WITHOUT ROWID;
CREATE INDEX tokens_of_account ON tokens (account);

CREATE TABLE invites (
    hash       BLOB PRIMARY KEY NOT NULL,
    created_at INTEGER NOT NULL,
    used_at    INTEGER
) WITHOUT ROWID;

CREATE TABLE leases (
    kind    TEXT NOT NULL,
    address TEXT NOT NULL,
    account BLOB NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    PRIMARY KEY (kind, address)
) WITHOUT ROWID;
