-- Host names of one's own. Several accounts may claim one, so that nobody keeps it from its owner by being first; whoever
-- shows that the domain is theirs has it.
CREATE TABLE hostnames (
    hostname    TEXT NOT NULL,
    account     BLOB NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    challenge   TEXT NOT NULL,
    created_at  INTEGER NOT NULL,
    verified_at INTEGER,
    last_error  TEXT,
    PRIMARY KEY (hostname, account)
) WITHOUT ROWID;
CREATE UNIQUE INDEX hostnames_verified ON hostnames (hostname) WHERE verified_at IS NOT NULL;
CREATE INDEX hostnames_of_account ON hostnames (account);
