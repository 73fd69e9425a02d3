-- Times are nanoseconds since 1970 in UTC, 0 for none. Lists and maps are JSON, '' for none. Flags are 0 or 1.

-- +goose Up
CREATE TABLE deliveries (
  seq       INTEGER PRIMARY KEY AUTOINCREMENT,
  id        TEXT    NOT NULL UNIQUE,
  body_hash TEXT    UNIQUE,            -- NULL: never a replay
  received  INTEGER NOT NULL,
  event     TEXT    NOT NULL,          -- tgr.Event without its payload
  payload   BLOB    NOT NULL
);

CREATE TABLE runs (
  id            INTEGER PRIMARY KEY AUTOINCREMENT, -- never given twice
  delivery      TEXT    NOT NULL REFERENCES deliveries (id),
  repo_id       INTEGER NOT NULL,
  repo          TEXT    NOT NULL,
  branch        TEXT    NOT NULL,
  event_name    TEXT    NOT NULL,
  number        INTEGER NOT NULL DEFAULT 0,
  attempt       INTEGER NOT NULL DEFAULT 1,
  workflow_file TEXT    NOT NULL DEFAULT '', -- '': not planned
  workflow_name TEXT    NOT NULL DEFAULT '',
  title         TEXT    NOT NULL DEFAULT '',
  status        TEXT    NOT NULL CHECK (status IN ('pending', 'queued', 'in_progress', 'completed')),
  conclusion    TEXT    NOT NULL DEFAULT '',
  reason        TEXT    NOT NULL DEFAULT '',
  cancel_reason TEXT    NOT NULL DEFAULT '', -- of the current attempt: it is to be cancelled
  grp           TEXT    NOT NULL DEFAULT '', -- tgr.Group
  created       INTEGER NOT NULL,
  started       INTEGER NOT NULL DEFAULT 0,
  finished      INTEGER NOT NULL DEFAULT 0,
  plan          BLOB,
  CHECK ((status = 'completed') = (conclusion <> ''))
);
CREATE INDEX runs_delivery ON runs (delivery);
CREATE INDEX runs_repo ON runs (repo, id);
CREATE INDEX runs_open ON runs (id) WHERE status <> 'completed';

-- How many runs a workflow file of a repository has had.
CREATE TABLE run_numbers (
  repo_id       INTEGER NOT NULL,
  workflow_file TEXT    NOT NULL,
  n             INTEGER NOT NULL,
  PRIMARY KEY (repo_id, workflow_file)
);

CREATE TABLE jobs (
  id                INTEGER PRIMARY KEY AUTOINCREMENT,
  run_id            INTEGER NOT NULL REFERENCES runs (id),
  attempt           INTEGER NOT NULL,
  kind              TEXT    NOT NULL CHECK (kind IN ('plan', 'job')),
  key               TEXT    NOT NULL,
  name              TEXT    NOT NULL,
  template          TEXT    NOT NULL,           -- the name before the matrix was expanded
  origin            INTEGER NOT NULL DEFAULT 0, -- the job of an earlier attempt that this one was carried over from
  needs             TEXT    NOT NULL,
  idx               INTEGER NOT NULL,
  total             INTEGER NOT NULL,
  instance          TEXT    NOT NULL,
  labels            TEXT    NOT NULL,
  continue_on_error INTEGER NOT NULL,
  max_parallel      INTEGER NOT NULL DEFAULT 0, -- 0: no limit
  status            TEXT    NOT NULL CHECK (status IN ('pending', 'queued', 'in_progress', 'completed')),
  conclusion        TEXT    NOT NULL DEFAULT '',
  blame             TEXT    NOT NULL DEFAULT '',
  reason            TEXT    NOT NULL DEFAULT '',
  tries             INTEGER NOT NULL DEFAULT 0,
  outputs           TEXT    NOT NULL DEFAULT '',
  machine           TEXT    NOT NULL DEFAULT '',
  isolation         TEXT    NOT NULL DEFAULT '',
  steps             TEXT    NOT NULL DEFAULT '',
  annotations       TEXT    NOT NULL DEFAULT '',
  created           INTEGER NOT NULL,
  queued            INTEGER NOT NULL DEFAULT 0,
  not_before        INTEGER NOT NULL DEFAULT 0, -- a fault of ours is given time to pass
  started           INTEGER NOT NULL DEFAULT 0,
  finished          INTEGER NOT NULL DEFAULT 0,
  owner             TEXT    NOT NULL DEFAULT '',
  token             TEXT    NOT NULL DEFAULT '', -- fencing token of the lease
  lease_until       INTEGER NOT NULL DEFAULT 0,
  cancel            INTEGER NOT NULL DEFAULT 0,  -- a running job is to be cancelled
  cancel_reason     TEXT    NOT NULL DEFAULT '',
  grp               TEXT    NOT NULL DEFAULT '', -- tgr.Group
  summary           TEXT    NOT NULL DEFAULT '',
  CHECK ((status = 'completed') = (conclusion <> '')),
  CHECK ((status = 'in_progress') = (token <> ''))
);
CREATE INDEX jobs_run ON jobs (run_id, attempt);
CREATE INDEX jobs_queue ON jobs (queued, id) WHERE status = 'queued';
CREATE INDEX jobs_leases ON jobs (lease_until) WHERE status = 'in_progress';
CREATE INDEX jobs_open ON jobs (status) WHERE status <> 'completed';

-- Who is in a concurrency group: runs and jobs that are not completed, in the order in which they came.
CREATE TABLE members (
  seq     INTEGER PRIMARY KEY AUTOINCREMENT,
  grp     TEXT    NOT NULL,               -- namespace and name
  run_id  INTEGER NOT NULL REFERENCES runs (id),
  job_id  INTEGER NOT NULL,               -- 0: the run itself
  waiting INTEGER NOT NULL,               -- 0: it holds the group
  spec    TEXT    NOT NULL,               -- tgr.Group
  UNIQUE (run_id, job_id)
);
CREATE UNIQUE INDEX members_holder ON members (grp) WHERE waiting = 0;
CREATE INDEX members_grp ON members (grp, seq);

CREATE TABLE reports (
  key       TEXT    PRIMARY KEY,
  version   INTEGER NOT NULL,
  sent      INTEGER NOT NULL DEFAULT 0, -- the latest version delivered or given up; lower than version: waiting
  due       INTEGER NOT NULL,
  tries     INTEGER NOT NULL DEFAULT 0,
  remote_id TEXT    NOT NULL DEFAULT '',
  reason    TEXT    NOT NULL DEFAULT '',
  created   INTEGER NOT NULL,
  body      BLOB    NOT NULL
);
CREATE INDEX reports_due ON reports (due) WHERE version > sent;

-- One row, written to find out whether anything can be written.
CREATE TABLE pings (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  at INTEGER NOT NULL
);

-- +goose Down
DROP TABLE pings;
DROP TABLE reports;
DROP TABLE members;
DROP TABLE jobs;
DROP TABLE run_numbers;
DROP TABLE runs;
DROP TABLE deliveries;
