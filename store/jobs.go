package store

import (
	"context"
	"time"

	"github.com/terraphim/tgr"
)

// Jobs lists the work jobs of an attempt (0: the current one) of a run, in the order in which they were made.
func (s *Store) Jobs(ctx context.Context, run tgr.RunID, attempt int) ([]tgr.Job, error) {
	panic("body follows")
}

// Job returns a job of any kind, or an error of [tgr.NotFound].
func (s *Store) Job(ctx context.Context, id tgr.JobID) (tgr.Job, error) { panic("body follows") }

// PlanJob returns the job that planned, or will plan, a run: the latest where it was planned more than once.
// Runs of one delivery share it.
func (s *Store) PlanJob(ctx context.Context, run tgr.RunID) (tgr.Job, error) { panic("body follows") }

// LogOf returns the job under whose id the log of a job was written: the job itself but for one that a re-run
// carried over from an earlier attempt.
func (s *Store) LogOf(ctx context.Context, id tgr.JobID) (tgr.JobID, error) { panic("body follows") }

// Depth is how much there is to do.
type Depth struct {
	Pending    int       `json:"pending"`
	Queued     int       `json:"queued"`
	InProgress int       `json:"in_progress"`
	Oldest     time.Time `json:"oldest,omitzero"` // when the job that waits longest was queued; zero if none is
}

// QueueDepth counts the jobs that are not completed.
func (s *Store) QueueDepth(ctx context.Context) (Depth, error) { panic("body follows") }
