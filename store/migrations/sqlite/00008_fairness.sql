-- The queue of each repository, and what runs of each, so that one which has queued much does not hold up the others.

-- +goose Up
ALTER TABLE jobs ADD COLUMN repo_id INTEGER NOT NULL DEFAULT 0;
UPDATE jobs SET repo_id = (SELECT repo_id FROM runs WHERE runs.id = jobs.run_id);
DROP INDEX jobs_queue;
CREATE INDEX jobs_queue ON jobs (kind, repo_id, queued, id) WHERE status = 'queued';
CREATE INDEX jobs_running ON jobs (kind, repo_id, run_id, attempt, key) WHERE status = 'in_progress';

-- +goose Down
DROP INDEX jobs_running;
DROP INDEX jobs_queue;
CREATE INDEX jobs_queue ON jobs (queued, id) WHERE status = 'queued';
ALTER TABLE jobs DROP COLUMN repo_id;
