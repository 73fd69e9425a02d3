package dispatch

import (
	"errors"
	"time"

	"github.com/terraphim/tgr"
)

// ErrNothing says that no job can be claimed now.
var ErrNothing = errors.New("nothing to do")

// Lease is the right to work on a job until a time. Every write about the job carries its Token; after the job
// was given to somebody else, the store refuses the old one with Conflict.
type Lease struct {
	tgr.Redacted

	Job   tgr.Job
	Run   tgr.Run // with its Plan
	Token string
	Until time.Time
}

// Claim asks for a job to work on.
type Claim struct {
	Owner string        // who asks: the server's instance, for taking back its work after it died
	Lease time.Duration // how long the job is his without a beat
	Kinds []tgr.JobKind // nil: any
}

// Planned is what became of an accepted event: one run per workflow that it starts, and one completed run per
// workflow file that could not be compiled. With no Runs the accepted run is skipped, and Reason says why.
type Planned struct {
	Event  tgr.Event // with what only the source knew, such as the SHA of a branch
	Runs   []PlannedRun
	Reason string
	// Awaited is what the workflows of the default branch wait for, where the event is of its latest commit; nil: it is not.
	Awaited *tgr.Awaited
}

// PlannedRun is one workflow of a planned event.
type PlannedRun struct {
	Event        *tgr.Event // where it is not the event that was planned
	WorkflowFile string
	WorkflowName string
	Title        string
	Group        tgr.Group
	Hold         string         // as of tgr.Run
	Plan         []byte         // workflow.Plan as JSON
	Source       []byte         // the workflow file; not stored
	Jobs         []tgr.Job      // pending; Key, Name and Needs are set
	Conclusion   tgr.Conclusion // StartupFailure for a workflow that could not be compiled: no jobs, and a Reason
	Reason       string
}

// Change is what Settle does to the jobs of a run. Each map is by id of a job that has not been completed.
type Change struct {
	Expand map[tgr.JobID][]tgr.Job // a pending job is replaced by these, which are queued, or wait for their Group
	Begin  map[tgr.JobID][]tgr.Job // a queued tgr.CallJob is in progress, and these pending jobs are what it calls
	Skip   map[tgr.JobID]string    // completed as skipped, for that reason
	End    map[tgr.JobID]JobResult // completed without a machine, as the result says
	Queue  map[tgr.JobID]time.Time // a gated job may go on, at that time
	Wait   map[tgr.JobID]string    // a pending job waits on, for that reason
	Cancel map[tgr.JobID]string    // cancelled at once, or marked for the machine that runs it, for that reason

	CancelRun string // what the run is cancelled for, unless it is already; "": nothing
}

// JobResult is how a job ended.
type JobResult struct {
	Conclusion  tgr.Conclusion
	Blame       tgr.Blame
	Reason      string
	Outputs     map[string]string
	Steps       []tgr.Step
	Annotations []tgr.Annotation
	Summary     string // Markdown, bounded
}

// Progress is what a running job shows of itself. Zero fields leave what is recorded as it is.
type Progress struct {
	Steps     []tgr.Step
	Machine   string
	Isolation string
}
