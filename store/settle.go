package store

import (
	"context"

	"github.com/terraphim/tgr"
)

// Change is what Settle's function wants done to the jobs of a run. A job may be named once.
type Change struct {
	Expand map[tgr.JobID]Expansion // a pending job is replaced by its instances
	Skip   map[tgr.JobID]string    // a pending job completes as skipped, with the reason
	Fail   map[tgr.JobID]Failure   // a pending job completes: its matrix or its condition could not be evaluated
	Queue  []tgr.JobID             // a pending job that needs no expansion, or was expanded as pending, is queued
	Cancel map[tgr.JobID]string    // pending and queued ones complete as cancelled, running ones are marked

	Reports []Outgoing // for the outbox
}

// Empty reports whether c changes nothing.
func (c Change) Empty() bool {
	return len(c.Expand)+len(c.Skip)+len(c.Fail)+len(c.Queue)+len(c.Cancel)+len(c.Reports) == 0
}

// Expansion is what a pending job becomes.
type Expansion struct {
	// Jobs are its instances: Name, Index, Total, Instance, Labels and ContinueOnError are used; Key, Needs and the
	// rest come from the pending job. Each is queued, or stays pending where its Status says so, for a later Queue.
	Jobs        []tgr.Job
	MaxParallel int // how many of them may run at once; 0: no limit
}

// Failure is how a job ends that never ran.
type Failure struct {
	Conclusion tgr.Conclusion // "": StartupFailure
	Blame      tgr.Blame      // "": BlameWorkflow
	Reason     string
}

// Settle moves a run on. It calls fn in a write transaction with the run (with its plan, without payload) and the
// work jobs of its current attempt as they are at that moment, applies the change that fn returns, derives the
// run's status with [tgr.Fold] and stores it where it differs. An error of fn is returned and nothing is written.
// A run that is completed, or not planned, is left alone: fn is not called. fn must be quick, must not block and
// must not call the store.
func (s *Store) Settle(ctx context.Context, run tgr.RunID, fn func(run tgr.Run, jobs []tgr.Job) (Change, error)) error {
	panic("body follows")
}
