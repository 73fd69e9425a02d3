-- The log of finished jobs, in the order in which they ended: what the learner folds. A row never changes.

-- +goose Up
CREATE TABLE finished (
  seq    INTEGER PRIMARY KEY AUTOINCREMENT,
  job_id INTEGER NOT NULL UNIQUE REFERENCES jobs (id)
);
INSERT INTO finished (job_id) SELECT id FROM jobs WHERE status = 'completed' AND kind = 'job' ORDER BY finished, id;

-- +goose Down
DROP TABLE finished;
