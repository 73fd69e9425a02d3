package store

import (
	"context"

	"github.com/terraphim/tgr"
)

// Planned is what planning a delivery yielded.
type Planned struct {
	Runs    []PlannedRun
	Reason  string     // why nothing runs, where Runs is empty
	Reports []Outgoing // for the outbox
}

// PlannedRun is one workflow that runs, or that should have run and could not be compiled.
type PlannedRun struct {
	WorkflowFile string // required
	WorkflowName string
	Title        string
	Plan         []byte    // workflow.Plan as JSON
	Jobs         []tgr.Job // Key, Name and Needs are used; each starts pending. Keys are distinct

	// Conclusion, if not empty, completes the run at once, without jobs: StartupFailure for a workflow that could
	// not be compiled, Skipped for one that has nothing to do.
	Conclusion tgr.Conclusion
	Reason     string
}

// Planned completes the plan job and makes its run real, in one transaction. The first of p.Runs takes over the
// run that Accept made, the others become new runs of the same delivery; their ids are returned in that order.
// Each gets the next number of its workflow file in its repository. Without any, the run is completed as skipped
// with p.Reason. An error of [tgr.Conflict] means that token is no longer the plan job's: nothing was written.
func (s *Store) Planned(ctx context.Context, job tgr.JobID, token string, p Planned) ([]tgr.RunID, error) {
	panic("body follows")
}

// Run returns a run with its plan and its event's payload, or an error of [tgr.NotFound].
func (s *Store) Run(ctx context.Context, id tgr.RunID) (tgr.Run, error) { panic("body follows") }

// RunFilter selects runs; a zero field selects all.
type RunFilter struct {
	Repo     string // full name
	Workflow string // file, or name
	Branch   string // the event's branch or tag, or a pull request's head branch
	Event    string
	Status   tgr.Status
	Delivery tgr.DeliveryID
	Before   tgr.RunID // only runs with a lower id: the next page
	Limit    int       // 0: 50; at most 1000
}

// Runs lists runs, the latest first, without plans and payloads.
func (s *Store) Runs(ctx context.Context, f RunFilter) ([]tgr.Run, error) { panic("body follows") }

// Unsettled lists the planned runs that are not completed, the oldest first: those that need Settle.
func (s *Store) Unsettled(ctx context.Context) ([]tgr.RunID, error) { panic("body follows") }

// CancelRun cancels the current attempt of a run, or of it one job where job is not 0. Jobs that are pending or
// queued complete as cancelled at once; those that run are marked, which Beat tells their worker. by is a person or
// a part of the system, for the reason: "cancelled by ada: superseded". An error of [tgr.Conflict] means that the run,
// or that job, is completed.
func (s *Store) CancelRun(ctx context.Context, run tgr.RunID, job tgr.JobID, reason, by string) error {
	panic("body follows")
}

// Again says what a re-run repeats.
type Again struct {
	Failed bool      // jobs that failed, were cancelled or timed out
	Job    tgr.JobID // this job of the current attempt; 0 and not Failed: all
}

// Rerun begins a new attempt of a completed run and returns its number. Jobs that are repeated, and all that need
// them, are new rows; the others are carried over as new rows with the same result. Rows of the old
// attempt stay as they were. A run whose planning failed is planned again. An error of [tgr.Conflict] means that the
// run is not completed or that there is nothing to repeat.
//
// A repeated job that was expanded, and none of whose needs is repeated, keeps its Instance and is queued at
// once; any other is pending and is expanded anew by Settle.
func (s *Store) Rerun(ctx context.Context, run tgr.RunID, again Again) (attempt int, err error) {
	panic("body follows")
}
