-- The schema that SQLite reached with its migration 8; from here on both have the same numbers.
--
-- Times are nanoseconds since 1970 in UTC, 0 for none. Lists and maps are JSON, '' for none. Flags are 0 or 1. Text is
-- compared as bytes, whatever the database's locale is.

-- +goose Up
CREATE TABLE deliveries (
  seq       BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  id        TEXT   COLLATE "C" NOT NULL UNIQUE,
  body_hash TEXT   COLLATE "C" UNIQUE,     -- NULL: never a replay
  received  BIGINT NOT NULL,
  event     TEXT   COLLATE "C" NOT NULL,   -- tgr.Event without its payload
  payload   BYTEA  NOT NULL
);

CREATE TABLE runs (
  id            BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, -- never given twice
  delivery      TEXT   COLLATE "C" NOT NULL REFERENCES deliveries (id),
  repo_id       BIGINT NOT NULL,
  repo          TEXT   COLLATE "C" NOT NULL,
  branch        TEXT   COLLATE "C" NOT NULL,
  event_name    TEXT   COLLATE "C" NOT NULL,
  number        BIGINT NOT NULL DEFAULT 0,
  attempt       BIGINT NOT NULL DEFAULT 1,
  workflow_file TEXT   COLLATE "C" NOT NULL DEFAULT '', -- '': not planned
  workflow_name TEXT   COLLATE "C" NOT NULL DEFAULT '',
  title         TEXT   COLLATE "C" NOT NULL DEFAULT '',
  status        TEXT   COLLATE "C" NOT NULL CHECK (status IN ('pending', 'queued', 'in_progress', 'completed')),
  conclusion    TEXT   COLLATE "C" NOT NULL DEFAULT '',
  reason        TEXT   COLLATE "C" NOT NULL DEFAULT '',
  cancel_reason TEXT   COLLATE "C" NOT NULL DEFAULT '', -- of the current attempt: it is to be cancelled
  grp           TEXT   COLLATE "C" NOT NULL DEFAULT '', -- tgr.Group
  created       BIGINT NOT NULL,
  started       BIGINT NOT NULL DEFAULT 0,
  finished      BIGINT NOT NULL DEFAULT 0,
  plan          BYTEA,
  hold          TEXT   COLLATE "C" NOT NULL DEFAULT '', -- why none of its jobs may begin before somebody approves
  approvals     TEXT   COLLATE "C" NOT NULL DEFAULT '', -- a list of tgr.Approval, of all attempts
  event         TEXT   COLLATE "C",                     -- that is not its delivery's: a pull_request is also a pull_request_target
  CHECK ((status = 'completed') = (conclusion <> ''))
);
CREATE INDEX runs_delivery ON runs (delivery);
CREATE INDEX runs_repo ON runs (repo, id);
CREATE INDEX runs_open ON runs (id) WHERE status <> 'completed';

-- How many runs a workflow file of a repository has had.
CREATE TABLE run_numbers (
  repo_id       BIGINT NOT NULL,
  workflow_file TEXT   COLLATE "C" NOT NULL,
  n             BIGINT NOT NULL,
  PRIMARY KEY (repo_id, workflow_file)
);

CREATE TABLE jobs (
  id                BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  run_id            BIGINT NOT NULL REFERENCES runs (id),
  attempt           BIGINT NOT NULL,
  kind              TEXT   COLLATE "C" NOT NULL CHECK (kind IN ('plan', 'job', 'call')),
  key               TEXT   COLLATE "C" NOT NULL,
  name              TEXT   COLLATE "C" NOT NULL,
  template          TEXT   COLLATE "C" NOT NULL, -- the name before the matrix was expanded
  origin            BIGINT NOT NULL DEFAULT 0,   -- the job of an earlier attempt that this one was carried over from
  needs             TEXT   COLLATE "C" NOT NULL,
  idx               BIGINT NOT NULL,
  total             BIGINT NOT NULL,
  instance          TEXT   COLLATE "C" NOT NULL,
  labels            TEXT   COLLATE "C" NOT NULL,
  continue_on_error BIGINT NOT NULL,
  max_parallel      BIGINT NOT NULL DEFAULT 0,   -- 0: no limit
  status            TEXT   COLLATE "C" NOT NULL CHECK (status IN ('pending', 'queued', 'in_progress', 'completed')),
  conclusion        TEXT   COLLATE "C" NOT NULL DEFAULT '',
  blame             TEXT   COLLATE "C" NOT NULL DEFAULT '',
  reason            TEXT   COLLATE "C" NOT NULL DEFAULT '',
  tries             BIGINT NOT NULL DEFAULT 0,
  outputs           TEXT   COLLATE "C" NOT NULL DEFAULT '',
  machine           TEXT   COLLATE "C" NOT NULL DEFAULT '',
  isolation         TEXT   COLLATE "C" NOT NULL DEFAULT '',
  steps             TEXT   COLLATE "C" NOT NULL DEFAULT '',
  annotations       TEXT   COLLATE "C" NOT NULL DEFAULT '',
  created           BIGINT NOT NULL,
  queued            BIGINT NOT NULL DEFAULT 0,
  not_before        BIGINT NOT NULL DEFAULT 0,   -- a fault of ours is given time to pass
  started           BIGINT NOT NULL DEFAULT 0,
  finished          BIGINT NOT NULL DEFAULT 0,
  owner             TEXT   COLLATE "C" NOT NULL DEFAULT '',
  token             TEXT   COLLATE "C" NOT NULL DEFAULT '', -- fencing token of the lease
  lease_until       BIGINT NOT NULL DEFAULT 0,
  cancel            BIGINT NOT NULL DEFAULT 0,   -- a running job is to be cancelled
  cancel_reason     TEXT   COLLATE "C" NOT NULL DEFAULT '',
  grp               TEXT   COLLATE "C" NOT NULL DEFAULT '', -- tgr.Group
  summary           TEXT   COLLATE "C" NOT NULL DEFAULT '',
  uses              TEXT   COLLATE "C" NOT NULL DEFAULT '', -- of a call: the workflow that it calls
  environment       TEXT   COLLATE "C" NOT NULL DEFAULT '',
  gated             BIGINT NOT NULL DEFAULT 0,   -- it waits for its environment's rules, before it may enter its group
  excused           BIGINT NOT NULL DEFAULT 0,   -- tries that ended with the server, and do not count
  repo_id           BIGINT NOT NULL DEFAULT 0,
  CHECK ((status = 'completed') = (conclusion <> '')),
  CHECK ((status = 'in_progress' AND kind <> 'call') = (token <> ''))
);
CREATE INDEX jobs_run ON jobs (run_id, attempt);
CREATE INDEX jobs_leases ON jobs (lease_until) WHERE status = 'in_progress';
CREATE INDEX jobs_open ON jobs (status) WHERE status <> 'completed';
CREATE INDEX jobs_queue ON jobs (kind, repo_id, queued, id) WHERE status = 'queued';
CREATE INDEX jobs_running ON jobs (kind, repo_id, run_id, attempt, key) WHERE status = 'in_progress';

-- Who is in a concurrency group: runs and jobs that are not completed, in the order in which they came.
CREATE TABLE members (
  seq     BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  grp     TEXT   COLLATE "C" NOT NULL,    -- namespace and name
  run_id  BIGINT NOT NULL REFERENCES runs (id),
  job_id  BIGINT NOT NULL,                -- 0: the run itself
  waiting BIGINT NOT NULL,                -- 0: it holds the group
  spec    TEXT   COLLATE "C" NOT NULL,    -- tgr.Group
  UNIQUE (run_id, job_id)
);
CREATE UNIQUE INDEX members_holder ON members (grp) WHERE waiting = 0;
CREATE INDEX members_grp ON members (grp, seq);

CREATE TABLE reports (
  key       TEXT   COLLATE "C" PRIMARY KEY,
  version   BIGINT NOT NULL,
  sent      BIGINT NOT NULL DEFAULT 0, -- the latest version delivered or given up; lower than version: waiting
  due       BIGINT NOT NULL,
  tries     BIGINT NOT NULL DEFAULT 0,
  remote_id TEXT   COLLATE "C" NOT NULL DEFAULT '',
  reason    TEXT   COLLATE "C" NOT NULL DEFAULT '',
  created   BIGINT NOT NULL,
  body      BYTEA  NOT NULL
);
CREATE INDEX reports_due ON reports (due) WHERE version > sent;

-- One row, written to find out whether anything can be written.
CREATE TABLE pings (
  id BIGINT PRIMARY KEY CHECK (id = 1),
  at BIGINT NOT NULL
);

-- One row: the token of the server that has the database. Who has another one writes nothing.
CREATE TABLE server (
  id    BIGINT PRIMARY KEY CHECK (id = 1),
  token TEXT   COLLATE "C" NOT NULL
);

-- Secrets, variables and environments. Names of scopes are in lower case, those of settings in upper case.
CREATE TABLE settings (
  kind        TEXT   COLLATE "C" NOT NULL CHECK (kind IN ('secret', 'variable')),
  owner       TEXT   COLLATE "C" NOT NULL, -- an account, or '' with a repository
  repo_id     BIGINT NOT NULL,             -- 0 with an account
  environment TEXT   COLLATE "C" NOT NULL, -- or ''
  name        TEXT   COLLATE "C" NOT NULL,
  repo        TEXT   COLLATE "C" NOT NULL, -- its name when it was set, for people
  value       BYTEA  NOT NULL,             -- of a secret sealed: the key is not in the database
  updated     BIGINT NOT NULL,
  PRIMARY KEY (kind, owner, repo_id, environment, name)
);

CREATE TABLE environments (
  repo_id BIGINT NOT NULL,
  name    TEXT   COLLATE "C" NOT NULL,
  rules   TEXT   COLLATE "C" NOT NULL, -- tgr.Environment
  PRIMARY KEY (repo_id, name)
);

-- The log of finished jobs, in the order in which they ended: what the learner folds. A row never changes.
CREATE TABLE finished (
  seq    BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  job_id BIGINT NOT NULL UNIQUE REFERENCES jobs (id)
);

-- What the workflows of a repository's default branch wait for that no webhook brings.
CREATE TABLE awaited (
  repo_id    BIGINT PRIMARY KEY,
  name       TEXT   COLLATE "C" NOT NULL, -- of the repository, in lower case
  repo       TEXT   COLLATE "C" NOT NULL, -- tgr.Repo
  repository BYTEA  NOT NULL,             -- as payloads have it
  followers  TEXT   COLLATE "C" NOT NULL, -- a list of tgr.Follower
  run_id     BIGINT NOT NULL,             -- whose event it was read for: that of an earlier one changes nothing
  misses     BIGINT NOT NULL DEFAULT 0,   -- times in a row that came and could not be planned
  missing    BIGINT NOT NULL DEFAULT 0    -- when the first of them came
);
CREATE INDEX awaited_name ON awaited (name);

CREATE TABLE schedules (
  repo_id  BIGINT NOT NULL REFERENCES awaited (repo_id) ON DELETE CASCADE,
  file     TEXT   COLLATE "C" NOT NULL,
  cron     TEXT   COLLATE "C" NOT NULL,
  timezone TEXT   COLLATE "C" NOT NULL, -- '': UTC
  next     BIGINT NOT NULL,
  actor    TEXT   COLLATE "C" NOT NULL,
  actor_id BIGINT NOT NULL,
  PRIMARY KEY (repo_id, file, cron, timezone)
);
CREATE INDEX schedules_next ON schedules (next);
