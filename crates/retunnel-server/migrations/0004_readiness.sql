-- Written by readiness checks: a database that can be read may still be full, locked or read-only.
CREATE TABLE readiness (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    checked_at INTEGER NOT NULL
);
