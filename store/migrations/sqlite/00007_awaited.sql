-- What the workflows of a repository's default branch wait for that no webhook brings.

-- +goose Up
CREATE TABLE awaited (
  repo_id    INTEGER PRIMARY KEY,
  name       TEXT    NOT NULL,           -- of the repository, in lower case
  repo       TEXT    NOT NULL,           -- tgr.Repo
  repository BLOB    NOT NULL,           -- as payloads have it
  followers  TEXT    NOT NULL,           -- a list of tgr.Follower
  run_id     INTEGER NOT NULL,           -- whose event it was read for: that of an earlier one changes nothing
  misses     INTEGER NOT NULL DEFAULT 0, -- times in a row that came and could not be planned
  missing    INTEGER NOT NULL DEFAULT 0  -- when the first of them came
);
CREATE INDEX awaited_name ON awaited (name);

CREATE TABLE schedules (
  repo_id  INTEGER NOT NULL REFERENCES awaited (repo_id) ON DELETE CASCADE,
  file     TEXT    NOT NULL,
  cron     TEXT    NOT NULL,
  timezone TEXT    NOT NULL, -- '': UTC
  next     INTEGER NOT NULL,
  actor    TEXT    NOT NULL,
  actor_id INTEGER NOT NULL,
  PRIMARY KEY (repo_id, file, cron, timezone)
);
CREATE INDEX schedules_next ON schedules (next);

-- +goose Down
DROP TABLE schedules;
DROP TABLE awaited;
