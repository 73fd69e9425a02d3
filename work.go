package tgr

import (
	"errors"
	"time"
)

// ErrNothing says that no job can be claimed now.
var ErrNothing = errors.New("nothing to do")

// Lease is the right to work on a job until a time. Every write about the job carries its Token; after the job
// was given to somebody else, the store refuses the old one with Conflict.
type Lease struct {
	Job   Job
	Run   Run // with its Plan
	Token string
	Until time.Time
}

// Claim asks for a job to work on.
type Claim struct {
	Owner string        // who asks: the server's instance, for taking back its work after it died
	Lease time.Duration // how long the job is his without a beat
	Kinds []JobKind     // nil: any
}

// Planned is what became of an accepted event: one run per workflow that it starts, and one completed run per
// workflow file that could not be compiled. With no Runs the accepted run is skipped, and Reason says why.
type Planned struct {
	Event  Event // with what only the source knew, such as the SHA of a branch
	Runs   []PlannedRun
	Reason string
}

// PlannedRun is one workflow of a planned event.
type PlannedRun struct {
	WorkflowFile string
	WorkflowName string
	Title        string
	Plan         []byte     // workflow.Plan as JSON
	Jobs         []Job      // pending; Key, Name and Needs are set
	Conclusion   Conclusion // StartupFailure for a workflow that could not be compiled: no jobs, and a Reason
	Reason       string
}

// Change is what Settle does to the jobs of a run. Each map is by id of a job that has not been completed.
type Change struct {
	Expand map[JobID][]Job     // a pending job is replaced by these, which are queued
	Skip   map[JobID]string    // completed as skipped, for that reason
	Fail   map[JobID]JobResult // completed without having run, as the result says
	Cancel map[JobID]string    // cancelled at once, or marked for the machine that runs it, for that reason
	Hold   map[JobID]string    // stays as it is; the reason is shown to who asks why it waits
}

// JobResult is how a job ended.
type JobResult struct {
	Conclusion  Conclusion
	Blame       Blame
	Reason      string
	Outputs     map[string]string
	Steps       []Step
	Annotations []Annotation
}

// Outgoing is a report on its way out. Of the same Key only the last one counts.
type Outgoing struct {
	Key  string // "check/17", "status/17", "comment/9/4"
	Kind string // what Body is; the reporter knows
	Body []byte
}

// Report is a report that has to be delivered.
type Report struct {
	Outgoing
	Version  int64  // of the Body; a newer one may have come while it was delivered
	RemoteID string // what the last delivery of this Key made, to be updated in place; "" before the first
	Tries    int    // failed deliveries of this version
}

// Filter selects runs. The zero value selects the latest 50.
type Filter struct {
	Repo     string // full name
	Workflow string // file
	Branch   string
	Status   Status
	Delivery DeliveryID
	Before   RunID // older than this one; 0: from the latest
	Limit    int   // 1 to 500; 0: 50
}

// Progress is what a running job shows of itself. Zero fields leave what is recorded as it is.
type Progress struct {
	Steps     []Step
	Machine   string
	Isolation string
	Reason    string // what it waits for
}
