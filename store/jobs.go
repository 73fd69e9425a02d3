package store

import (
	"context"
	"fmt"
	"time"

	"github.com/terraphim/tgr"
)

// Jobs lists the jobs, but for the plan job, of an attempt (0: the current one) of a run, in the order in which they were made.
func (s *Store) Jobs(ctx context.Context, run tgr.RunID, attempt int) ([]tgr.Job, error) {
	if attempt == 0 {
		r, err := findRun(ctx, s.r, run, false)
		if err != nil {
			return nil, s.dialect.fault("jobs", err)
		}
		attempt = r.Attempt
	}
	jobs, err := work(ctx, s.r, run, attempt)
	return plain(jobs), s.dialect.fault("jobs", err)
}

// Job returns a job of any kind, or an error of [tgr.NotFound].
func (s *Store) Job(ctx context.Context, id tgr.JobID) (tgr.Job, error) {
	j, err := findJob(ctx, s.r, id)
	if err != nil {
		return tgr.Job{}, s.dialect.fault("job", err)
	}
	return j.Job, nil
}

// PlanJob returns the job that planned, or will plan, a run: the latest where it was planned more than once.
// Runs of one delivery share it.
func (s *Store) PlanJob(ctx context.Context, id tgr.RunID) (tgr.Job, error) {
	run, err := findRun(ctx, s.r, id, false)
	if err != nil {
		return tgr.Job{}, s.dialect.fault("plan job", err)
	}
	j, err := findPlanJob(ctx, s.r, run)
	if err != nil {
		return tgr.Job{}, s.dialect.fault("plan job", err)
	}
	return j.Job, nil
}

// findPlanJob reads the latest plan job of run, or else of its delivery.
func findPlanJob(ctx context.Context, q querier, run tgr.Run) (*job, error) {
	jobs, err := findJobs(ctx, q, `WHERE kind = $1 AND run_id IN (SELECT id FROM runs WHERE delivery = $2)
		ORDER BY CASE WHEN run_id = $3 THEN 0 ELSE 1 END, id DESC LIMIT 1`, tgr.PlanJob, run.Delivery, run.ID)
	if err != nil {
		return nil, err
	}
	if len(jobs) == 0 {
		return nil, fmt.Errorf("run %d has no plan job", run.ID)
	}
	return jobs[0], nil
}

// LogOf returns the job under whose id the log of a job was written: the job itself but for one that a re-run
// carried over from an earlier attempt.
func (s *Store) LogOf(ctx context.Context, id tgr.JobID) (tgr.JobID, error) {
	j, err := findJob(ctx, s.r, id)
	if err != nil {
		return 0, s.dialect.fault("log", err)
	}
	if j.Origin != 0 {
		return j.Origin, nil
	}
	return j.ID, nil
}

// Depth is how much there is to do.
type Depth struct {
	Pending    int       `json:"pending"`
	Queued     int       `json:"queued"`
	InProgress int       `json:"in_progress"`
	Oldest     time.Time `json:"oldest,omitzero"` // when the job that waits longest was queued; zero if none is
}

// QueueDepth counts the jobs that are not completed.
func (s *Store) QueueDepth(ctx context.Context) (Depth, error) {
	var d Depth
	var oldest int64
	err := s.r.QueryRowContext(ctx, `SELECT
		COALESCE(SUM(CASE WHEN status = 'pending' THEN 1 ELSE 0 END), 0),
		COALESCE(SUM(CASE WHEN status = 'queued' THEN 1 ELSE 0 END), 0),
		COALESCE(SUM(CASE WHEN status = 'in_progress' THEN 1 ELSE 0 END), 0),
		COALESCE(MIN(CASE WHEN status = 'queued' THEN queued END), 0)
		FROM jobs WHERE status <> 'completed' AND kind <> 'call'`).Scan(&d.Pending, &d.Queued, &d.InProgress, &oldest)
	d.Oldest = moment(oldest)
	return d, s.dialect.fault("depth", err)
}
