CREATE TABLE blobs (
	id        INTEGER PRIMARY KEY AUTOINCREMENT,
	kind      TEXT    NOT NULL CHECK (kind IN ('cache', 'artifact')),
	-- open: its parts arrive; sealed: they are complete and in order; done: it can be fetched, and never changes
	state     TEXT    NOT NULL CHECK (state IN ('open', 'sealed', 'done')),
	repo      TEXT    NOT NULL,
	repo_name TEXT    NOT NULL,
	run       INTEGER NOT NULL,
	attempt   INTEGER NOT NULL,
	job       INTEGER NOT NULL,
	trusted   INTEGER NOT NULL,
	scope     TEXT    NOT NULL, -- the ref of the event
	name      TEXT    NOT NULL, -- the key of a cache
	version   TEXT    NOT NULL, -- of a cache; of an artifact, which try of its job made it
	mime      TEXT    NOT NULL,
	size      INTEGER NOT NULL DEFAULT 0,
	digest    TEXT    NOT NULL DEFAULT '',
	created   INTEGER NOT NULL, -- times in microseconds since 1970
	used      INTEGER NOT NULL,
	expires   INTEGER NOT NULL DEFAULT 0 -- 0: does not
) STRICT;
CREATE UNIQUE INDEX cache_key ON blobs (repo, trusted, scope, version, name) WHERE kind = 'cache' AND state = 'done';
CREATE UNIQUE INDEX artifact_name ON blobs (run, attempt, name) WHERE kind = 'artifact' AND state = 'done';
CREATE INDEX unfinished ON blobs (job) WHERE state <> 'done';
CREATE INDEX expiring ON blobs (expires) WHERE expires > 0;

CREATE TABLE parts (
	blob   INTEGER NOT NULL REFERENCES blobs ON DELETE CASCADE,
	block  TEXT    NOT NULL, -- the client's id of it
	seq    INTEGER NOT NULL DEFAULT -1, -- its place in the sealed blob
	hash   TEXT    NOT NULL,
	size   INTEGER NOT NULL,
	stored INTEGER NOT NULL DEFAULT 0, -- the bytes are where they belong
	PRIMARY KEY (blob, block)
) STRICT, WITHOUT ROWID;
CREATE INDEX part_hash ON parts (hash);
