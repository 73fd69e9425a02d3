-- Secrets, variables and environments. Names of scopes are in lower case, those of settings in upper case.

-- +goose Up
CREATE TABLE settings (
  kind        TEXT    NOT NULL CHECK (kind IN ('secret', 'variable')),
  owner       TEXT    NOT NULL, -- an account, or '' with a repository
  repo_id     INTEGER NOT NULL, -- 0 with an account
  environment TEXT    NOT NULL, -- or ''
  name        TEXT    NOT NULL,
  repo        TEXT    NOT NULL, -- its name when it was set, for people
  value       BLOB    NOT NULL, -- of a secret sealed: the key is not in the database
  updated     INTEGER NOT NULL,
  PRIMARY KEY (kind, owner, repo_id, environment, name)
);

CREATE TABLE environments (
  repo_id INTEGER NOT NULL,
  name    TEXT    NOT NULL,
  rules   TEXT    NOT NULL, -- tgr.Environment
  PRIMARY KEY (repo_id, name)
);
