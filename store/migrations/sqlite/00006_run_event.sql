-- A run may have an event that is not its delivery's: a pull_request is also a pull_request_target.

-- +goose Up
ALTER TABLE runs ADD COLUMN event TEXT;

-- +goose Down
ALTER TABLE runs DROP COLUMN event;
