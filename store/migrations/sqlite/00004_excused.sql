-- Tries of a job that ended with the server, and do not count.

-- +goose Up
ALTER TABLE jobs ADD COLUMN excused INTEGER NOT NULL DEFAULT 0;
