// Package tgr is the vocabulary of the Terraphim GitHub Runner: repositories, events, runs, jobs, steps,
// their states and errors, and the small interfaces that more than one room needs.
//
// It imports nothing but the standard library, does no I/O, and carries no promise of a stable API.
package tgr

import (
	"encoding/json"
	"strings"
	"time"
)

// Repo is a repository as the sender of an event describes it.
type Repo struct {
	ID            int64  `json:"id"` // numeric and permanent: the identity; names change hands
	FullName      string `json:"full_name"`
	CloneURL      string `json:"clone_url"`
	DefaultBranch string `json:"default_branch"`
	Private       bool   `json:"private,omitempty"`
	Fork          bool   `json:"fork,omitempty"`
}

// Event is a webhook after decoding, or what `tgr run` makes up in its place.
type Event struct {
	Name    string          `json:"name"` // X-GitHub-Event, never guessed: push, pull_request, …
	Action  string          `json:"action,omitempty"`
	Repo    Repo            `json:"repo"`
	Ref     string          `json:"ref"`                // github.ref: refs/heads/main, refs/tags/v1, refs/pull/7/merge
	SHA     string          `json:"sha"`                // github.sha: the commit whose workflows run; 40 hex digits
	Tree    string          `json:"tree,omitempty"`     // of that commit, which other commits may share; "": not known
	HeadSHA string          `json:"head_sha,omitempty"` // where statuses go; SHA but for pull requests
	BaseSHA string          `json:"base_sha,omitempty"` // what changed files are compared with; may be empty or zeros
	HeadRef string          `json:"head_ref,omitempty"` // branch of a pull request
	BaseRef string          `json:"base_ref,omitempty"` // target branch of a pull request
	Actor   string          `json:"actor"`
	ActorID int64           `json:"actor_id,omitempty"`
	Number  int             `json:"number,omitempty"`  // of the pull request
	Forked  bool            `json:"forked,omitempty"`  // a pull request from another repository: untrusted; or the workflow_run of one
	Chain   int             `json:"chain,omitempty"`   // of a workflow_run of ours: how many of them led to it, itself included
	Deleted bool            `json:"deleted,omitempty"` // a push that deletes its ref: nothing runs
	Payload json.RawMessage `json:"-"`                 // github.event, exactly as it was sent
}

// Delivery is an accepted webhook.
type Delivery struct {
	ID       DeliveryID
	Event    Event
	BodyHash string // SHA-256 of the payload, in hex: finds a replay under another id or as another event
	Received time.Time
}

// Awaited is what the workflows of a repository's default branch wait for that no webhook brings: times, and runs that are
// made here.
type Awaited struct {
	Repository json.RawMessage // the repository, as payloads have it
	Schedules  []Schedule
	Followers  []Follower
}

// Follower is a workflow that starts on runs of others: the filters of its on.workflow_run. A nil one was not written.
type Follower struct {
	Types          []string `json:"types"`
	Workflows      []string `json:"workflows"`
	Branches       []string `json:"branches"`
	BranchesIgnore []string `json:"branches_ignore"`
}

// Schedule is a time at which a workflow of a default branch is started again and again.
type Schedule struct {
	Repo       Repo
	Repository json.RawMessage // as of Awaited
	File       string          // .github/workflows/nightly.yml
	Cron       string          // as it is written there
	Timezone   string          // an IANA name; "": UTC
	Next       time.Time       // when it is started next
	Actor      string          // who brought it to the default branch
	ActorID    int64
}

// Run is one run of one workflow for one event.
type Run struct {
	ID           RunID      `json:"id"`
	Number       int        `json:"run_number"` // counts the runs of this workflow file in this repository, from 1
	Attempt      int        `json:"run_attempt"`
	Delivery     DeliveryID `json:"delivery"`
	Event        Event      `json:"event"`
	WorkflowFile string     `json:"workflow_file"` // .github/workflows/ci.yml; empty until planned
	WorkflowName string     `json:"workflow_name"`
	Title        string     `json:"title"` // run-name
	Status       Status     `json:"status"`
	Conclusion   Conclusion `json:"conclusion,omitempty"`
	Reason       string     `json:"reason,omitempty"`        // why it was skipped or not planned
	CancelReason string     `json:"cancel_reason,omitempty"` // set when cancellation was asked for: who and why
	Created      time.Time  `json:"created_at"`
	Started      time.Time  `json:"started_at,omitzero"`
	Finished     time.Time  `json:"finished_at,omitzero"`
	Group        Group      `json:"concurrency,omitzero"`
	Hold         string     `json:"hold,omitempty"`      // why none of its jobs may begin before somebody approves; "": they may
	Approvals    []Approval `json:"approvals,omitempty"` // of all attempts, the oldest first
	Plan         []byte     `json:"-"`                   // workflow.Plan as JSON; empty until planned
}

// Approval is what somebody decided of a run that asked for it.
type Approval struct {
	Attempt     int       `json:"run_attempt"`
	Environment string    `json:"environment,omitempty"` // whose jobs; "": the run as a whole, which was on Hold
	Approved    bool      `json:"approved"`              // false: rejected
	By          string    `json:"by"`
	Comment     string    `json:"comment,omitempty"`
	At          time.Time `json:"at"`
}

// Approval returns what was decided of an environment's jobs in the current attempt, nil if nothing was. Names of
// environments do not differ by case.
func (r *Run) Approval(environment string) *Approval {
	for i := range r.Approvals {
		if a := &r.Approvals[i]; a.Attempt == r.Attempt && strings.EqualFold(a.Environment, environment) {
			return a
		}
	}
	return nil
}

// Group is a concurrency group that a run or a job is in: of those in one group, one goes on at a time. The zero value is
// no group. Its name counts within one repository, without regard to case, and apart for pull requests from forks.
type Group struct {
	Name        string `json:"name"`
	CancelOther bool   `json:"cancel_in_progress,omitempty"` // who comes cancels who goes on
	QueueMax    bool   `json:"queue_max,omitempty"`          // who comes waits behind those who wait; otherwise in their place
}

// JobKind tells the job that plans a run from those that the workflow asked for.
type JobKind string

// The kinds of jobs.
const (
	PlanJob JobKind = "plan" // fetches the commit, compiles its workflows, makes the other jobs
	WorkJob JobKind = "job"
	CallJob JobKind = "call" // calls a reusable workflow, whose jobs are jobs of the run; takes no machine
)

// Job is one job of one attempt of a run: after the matrix was expanded, one per combination.
type Job struct {
	ID              JobID             `json:"id"`
	Run             RunID             `json:"run_id"`
	Attempt         int               `json:"run_attempt"`
	Kind            JobKind           `json:"kind"`
	Key             string            `json:"key"`                    // the job's key in the workflow file; of a called workflow a path: "deploy/build", "deploy[1]/build"
	Name            string            `json:"name"`                   // as shown: evaluated, with the matrix values
	Needs           []string          `json:"needs,omitempty"`        // keys, as Key
	Uses            string            `json:"uses,omitempty"`         // of a CallJob: the workflow that it calls
	Index           int               `json:"index"`                  // strategy.job-index
	Total           int               `json:"total"`                  // strategy.job-total; 0 until the matrix was expanded
	MaxParallel     int               `json:"max_parallel,omitempty"` // how many of its Total may run at once; 0: all
	Instance        json.RawMessage   `json:"instance,omitempty"`     // what was settled when the job was queued: its combination of the matrix, the jobs it needed
	Labels          []string          `json:"labels,omitempty"`
	Environment     string            `json:"environment,omitempty"`
	Gated           bool              `json:"gated,omitempty"`  // it waits for what its environment asks for, such as an approval
	Origin          JobID             `json:"origin,omitempty"` // the job of an earlier attempt that this one stands for, as it did not run again
	ContinueOnError bool              `json:"continue_on_error,omitempty"`
	Status          Status            `json:"status"`
	Conclusion      Conclusion        `json:"conclusion,omitempty"`
	Blame           Blame             `json:"blame,omitempty"`
	Reason          string            `json:"reason,omitempty"` // why it is waiting, failed, was cancelled or skipped
	Tries           int               `json:"tries"`            // how often a machine was given to it; more than one only for faults of ours
	Excused         int               `json:"-"`                // of its Tries, those that ended with the server: they do not count
	Outputs         map[string]string `json:"outputs,omitempty"`
	Machine         string            `json:"machine,omitempty"`   // id of the machine it ran on
	Isolation       string            `json:"isolation,omitempty"` // mode of that machine: "qemu (tcg)", "process"
	Steps           []Step            `json:"steps,omitempty"`
	Annotations     []Annotation      `json:"annotations,omitempty"`
	Summary         string            `json:"summary,omitempty"` // Markdown that its steps wrote; hostile
	Group           Group             `json:"concurrency,omitzero"`
	Created         time.Time         `json:"created_at"`
	Queued          time.Time         `json:"-"` // since when it waits for a machine, or, where it is Gated, at its gate; zero: it does not, or that is not known
	Started         time.Time         `json:"started_at,omitzero"`
	Finished        time.Time         `json:"finished_at,omitzero"`
}

// Calling reports whether j stands for jobs of the run that are listed themselves: it calls a workflow, and has begun to.
func (j *Job) Calling() bool { return j.Kind == CallJob && !j.Started.IsZero() }

// Step is one step of a job, in the order of execution; pre and post steps count.
type Step struct {
	Number     int        `json:"number"` // from 1
	ID         string     `json:"id,omitempty"`
	Name       string     `json:"name"`
	Status     Status     `json:"status"`
	Conclusion Conclusion `json:"conclusion,omitempty"` // after continue-on-error
	Outcome    Conclusion `json:"outcome,omitempty"`    // before continue-on-error
	ExitCode   *int       `json:"exit_code,omitempty"`  // nil: no process of it ended
	Reason     string     `json:"reason,omitempty"`
	Started    time.Time  `json:"started_at,omitzero"`
	Finished   time.Time  `json:"finished_at,omitzero"`

	// What its machine's agent says that it took; the agent is hostile, and nothing is decided by it.
	CPU         time.Duration `json:"cpu_ns,omitempty"`        // processor time; 0: not measured
	MemoryMiB   int64         `json:"memory_mb,omitempty"`     // the most that was in use in the machine meanwhile; 0: not measured
	OutOfMemory bool          `json:"out_of_memory,omitempty"` // it failed, and memory ran out
}

// Annotation is an error, warning or notice that a step attached to a place in the code.
type Annotation struct {
	Level     string `json:"level"` // error, warning, notice
	Message   string `json:"message"`
	Title     string `json:"title,omitempty"`
	File      string `json:"file,omitempty"`
	Line      int    `json:"line,omitempty"`
	EndLine   int    `json:"end_line,omitempty"`
	Column    int    `json:"col,omitempty"`
	EndColumn int    `json:"end_column,omitempty"`
	Step      int    `json:"step,omitempty"` // number of the step
}

// LogLine is one line of a job's log.
type LogLine struct {
	Time time.Time `json:"time"`
	Step int       `json:"step"` // number of the step; 0 for what the server says of the job itself
	Text string    `json:"text"` // masked, without the line's end
}

// Artifact is a file, or an archive of files, that a job kept for other jobs and for people.
type Artifact struct {
	ID      int64     `json:"id"`
	Repo    string    `json:"repository"` // owner/name when it was made
	Run     RunID     `json:"run_id"`
	Attempt int       `json:"run_attempt"`
	Job     JobID     `json:"job_id"`
	Name    string    `json:"name"` // one element of a path
	Type    string    `json:"content_type"`
	Size    int64     `json:"size_bytes"`
	Digest  string    `json:"digest"` // sha256:…
	Created time.Time `json:"created_at"`
	Expires time.Time `json:"expires_at"`
}

// File is the name that the artifact is to be saved under: that of an archive says what it is.
func (a Artifact) File() string {
	if a.Type == "application/zip" && !strings.HasSuffix(a.Name, ".zip") {
		return a.Name + ".zip"
	}
	return a.Name
}
