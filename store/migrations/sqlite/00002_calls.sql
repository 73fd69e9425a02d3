-- Jobs that call a reusable workflow, environments, and what waits for somebody's approval.

-- +goose Up
CREATE TABLE jobs_new (
  id                INTEGER PRIMARY KEY AUTOINCREMENT,
  run_id            INTEGER NOT NULL REFERENCES runs (id),
  attempt           INTEGER NOT NULL,
  kind              TEXT    NOT NULL CHECK (kind IN ('plan', 'job', 'call')),
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
  uses              TEXT    NOT NULL DEFAULT '', -- of a call: the workflow that it calls
  environment       TEXT    NOT NULL DEFAULT '',
  gated             INTEGER NOT NULL DEFAULT 0,  -- it waits for its environment's rules, before it may enter its group
  CHECK ((status = 'completed') = (conclusion <> '')),
  CHECK ((status = 'in_progress' AND kind <> 'call') = (token <> ''))
);
INSERT INTO jobs_new (id, run_id, attempt, kind, key, name, template, origin, needs, idx, total, instance, labels, continue_on_error, max_parallel, status, conclusion, blame, reason, tries, outputs, machine, isolation, steps, annotations, created, queued, not_before, started, finished, owner, token, lease_until, cancel, cancel_reason, grp, summary)
  SELECT id, run_id, attempt, kind, key, name, template, origin, needs, idx, total, instance, labels, continue_on_error, max_parallel, status, conclusion, blame, reason, tries, outputs, machine, isolation, steps, annotations, created, queued, not_before, started, finished, owner, token, lease_until, cancel, cancel_reason, grp, summary FROM jobs;
DELETE FROM sqlite_sequence WHERE name = 'jobs_new';
INSERT INTO sqlite_sequence (name, seq) SELECT 'jobs_new', seq FROM sqlite_sequence WHERE name = 'jobs';
DROP TABLE jobs;
ALTER TABLE jobs_new RENAME TO jobs;
CREATE INDEX jobs_run ON jobs (run_id, attempt);
CREATE INDEX jobs_queue ON jobs (queued, id) WHERE status = 'queued';
CREATE INDEX jobs_leases ON jobs (lease_until) WHERE status = 'in_progress';
CREATE INDEX jobs_open ON jobs (status) WHERE status <> 'completed';

-- Why none of a run's jobs may begin before somebody approves, or ''.
ALTER TABLE runs ADD COLUMN hold TEXT NOT NULL DEFAULT '';
-- A list of tgr.Approval, of all attempts.
ALTER TABLE runs ADD COLUMN approvals TEXT NOT NULL DEFAULT '';
