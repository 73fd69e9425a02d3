package store

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/terraphim/tgr"
)

// What a repository waits for is forgotten when its schedules could not be planned that often in a row, and for that long, as
// when it was deleted. It is known again once an event of its default branch is planned.
const (
	maxMisses = 3
	missesFor = 24 * time.Hour
)

// await makes a the whole of what a run's repository waits for, as of the run's event. A schedule that was known keeps its time.
// Events may be planned in another order than they came in: what a later one has said stays.
func (t *tx) await(run tgr.Run, a tgr.Awaited) error {
	repo, err := json.Marshal(run.Event.Repo)
	if err != nil {
		return err
	}
	followers, err := encode(a.Followers, len(a.Followers))
	if err != nil {
		return err
	}
	id, name := run.Event.Repo.ID, strings.ToLower(run.Event.Repo.FullName)
	// A name that is this repository's now is no other's: one that was deleted is not heard of again.
	if _, err := t.Exec("DELETE FROM awaited WHERE name = $1 AND repo_id <> $2 AND run_id < $3", name, id, run.ID); err != nil {
		return fmt.Errorf("forget who was called %s: %w", name, err)
	}
	res, err := t.Exec(`INSERT INTO awaited (repo_id, name, repo, repository, followers, run_id) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (repo_id) DO UPDATE SET name = excluded.name, repo = excluded.repo, repository = excluded.repository,
			followers = excluded.followers, run_id = excluded.run_id, misses = 0, missing = 0 WHERE awaited.run_id <= excluded.run_id`,
		id, name, string(repo), bytesOf(a.Repository), followers, run.ID)
	if err != nil {
		return fmt.Errorf("record what %s waits for: %w", name, err)
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return err
	}
	return t.keepSchedules(id, a.Schedules)
}

// bytesOf is data for a column that is not NULL.
func bytesOf(data []byte) []byte {
	if data == nil {
		return []byte{}
	}
	return data
}

// scheduleKey is what tells a schedule from the others of its repository.
type scheduleKey struct{ file, cron, timezone string }

// keepSchedules adds the schedules of a repository that are new, and forgets those that are gone.
func (t *tx) keepSchedules(repo int64, list []tgr.Schedule) error {
	rows, err := t.Query("SELECT file, cron, timezone FROM schedules WHERE repo_id = $1", repo)
	if err != nil {
		return fmt.Errorf("read the schedules of repository %d: %w", repo, err)
	}
	defer rows.Close()
	gone := map[scheduleKey]bool{}
	for rows.Next() {
		var k scheduleKey
		if err := rows.Scan(&k.file, &k.cron, &k.timezone); err != nil {
			return err
		}
		gone[k] = true
	}
	if err := rows.Err(); err != nil {
		return err
	}
	for _, s := range list {
		k := scheduleKey{s.File, s.Cron, s.Timezone}
		if gone[k] {
			delete(gone, k)
			continue
		}
		if _, err := t.Exec("INSERT INTO schedules (repo_id, file, cron, timezone, next, actor, actor_id) VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
			repo, s.File, s.Cron, s.Timezone, nanos(s.Next), s.Actor, s.ActorID); err != nil {
			return fmt.Errorf("add a schedule of repository %d: %w", repo, err)
		}
	}
	for k := range gone {
		if _, err := t.Exec("DELETE FROM schedules WHERE repo_id = $1 AND file = $2 AND cron = $3 AND timezone = $4", repo, k.file, k.cron, k.timezone); err != nil {
			return fmt.Errorf("forget a schedule of repository %d: %w", repo, err)
		}
	}
	return nil
}

// missed counts a run of a schedule that has ended before its event was planned, through no decision of ours.
func (t *tx) missed(run *tgr.Run) error {
	if run.Event.Name != "schedule" || run.WorkflowFile != "" || run.Conclusion != tgr.Failure {
		return nil
	}
	if _, err := t.Exec("UPDATE awaited SET misses = misses + 1, missing = CASE WHEN misses = 0 THEN $2 ELSE missing END WHERE repo_id = $1",
		run.Event.Repo.ID, nanos(t.now)); err != nil {
		return fmt.Errorf("count a schedule that could not be planned: %w", err)
	}
	_, err := t.Exec("DELETE FROM awaited WHERE repo_id = $1 AND misses >= $2 AND missing <= $3", run.Event.Repo.ID, maxMisses, nanos(t.now.Add(-missesFor)))
	return err
}

// Due lists up to limit schedules (0: 50; at most 1000) whose time has come at now, the most overdue first.
func (s *Store) Due(ctx context.Context, now time.Time, limit int) ([]tgr.Schedule, error) {
	list, err := s.due(ctx, now, limit)
	return list, s.dialect.fault("schedules", err)
}

// Schedules lists up to 1000 schedules of a repository (owner/name; "": of all), the soonest first.
func (s *Store) Schedules(ctx context.Context, repo string) ([]tgr.Schedule, error) {
	where, args := "", []any{}
	if repo != "" {
		where, args = "WHERE a.name = $1", append(args, strings.ToLower(repo))
	}
	list, err := s.schedules(ctx, where, page(maxPage), args...)
	return list, s.dialect.fault("schedules", err)
}

func (s *Store) due(ctx context.Context, now time.Time, limit int) ([]tgr.Schedule, error) {
	return s.schedules(ctx, "WHERE s.next <= $1", page(limit), nanos(now))
}

func (s *Store) schedules(ctx context.Context, where string, limit int, args ...any) ([]tgr.Schedule, error) {
	rows, err := s.r.QueryContext(ctx, fmt.Sprintf(`SELECT a.repo_id, a.repo, a.repository, s.file, s.cron, s.timezone, s.next, s.actor, s.actor_id
		FROM schedules s JOIN awaited a ON a.repo_id = s.repo_id %s ORDER BY s.next, s.repo_id, s.file, s.cron, s.timezone LIMIT %d`, where, limit), args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []tgr.Schedule
	for rows.Next() {
		var d tgr.Schedule
		var id, next int64
		var repo string
		var repository []byte
		if err := rows.Scan(&id, &repo, &repository, &d.File, &d.Cron, &d.Timezone, &next, &d.Actor, &d.ActorID); err != nil {
			return nil, err
		}
		if err := decode(fmt.Sprintf("repository %d", id), repo, &d.Repo); err != nil {
			return nil, err
		}
		d.Repository, d.Next = repository, moment(next)
		list = append(list, d)
	}
	return list, rows.Err()
}

// Fire sets the next time of a schedule (zero: it has none, and is forgotten) and, if d is not nil, accepts the event
// of the time that has come: both, or neither. won is false, and nothing was written, where the schedule is no longer as Due
// has listed it: another server was first, or it is gone. So each time is an event once.
func (s *Store) Fire(ctx context.Context, due tgr.Schedule, next time.Time, d *tgr.Delivery) (won bool, err error) {
	err = s.write(ctx, "fire", func(t *tx) error {
		const which = " WHERE repo_id = $1 AND file = $2 AND cron = $3 AND timezone = $4 AND next = $5"
		query, args := "DELETE FROM schedules"+which, []any{due.Repo.ID, due.File, due.Cron, due.Timezone, nanos(due.Next)}
		if !next.IsZero() {
			query, args = "UPDATE schedules SET next = $6"+which, append(args, nanos(next))
		}
		res, err := t.Exec(query, args...)
		if err != nil {
			return fmt.Errorf("set the next time of %s in %s: %w", due.File, due.Repo.FullName, err)
		}
		n, err := res.RowsAffected()
		if err != nil || n == 0 || d == nil {
			won = n == 1
			return err
		}
		won = true
		event, err := eventOf(*d)
		if err != nil {
			return err
		}
		_, _, err = t.accept(*d, event)
		return err
	})
	return won && err == nil, err
}
