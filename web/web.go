// Package web is the HTTP face of the server: pages, the JSON API and its OpenAPI document, server-sent
// events, metrics and health. It knows the vocabulary of the root and nothing of how runs are kept or carried
// out: what it needs is declared here as small interfaces, which cmd/tgr satisfies with adapters.
//
// Names, log lines and messages come from workflows and from guests: they are data here, escaped or stripped
// wherever they are shown.
package web

import (
	"context"
	"iter"
	"log/slog"
	"net/http"
	"time"

	"github.com/terraphim/tgr"
)

// RunStore is what the pages and the API read. Its methods are safe for concurrent use; what does not exist is
// a *tgr.Error with the code NotFound.
type RunStore interface {
	// Runs returns at most f.Limit runs that f admits, the newest (highest id) first.
	Runs(ctx context.Context, f Filter) ([]tgr.Run, error)
	// Run returns one run, with its Plan if there is one.
	Run(ctx context.Context, id tgr.RunID) (tgr.Run, error)
	// Jobs returns the jobs of one attempt (from 1) of a run in the order in which they are to be shown,
	// with their steps and annotations.
	Jobs(ctx context.Context, run tgr.RunID, attempt int) ([]tgr.Job, error)
	// Job returns one job with its steps and annotations.
	Job(ctx context.Context, id tgr.JobID) (tgr.Job, error)
}

// Filter chooses runs. A zero field admits every run.
type Filter struct {
	Repo     string         // full name, owner/name
	Workflow string         // path of the workflow file, or the workflow's name
	Branch   string         // the event's branch or tag, or a pull request's head branch
	Event    string         // push, pull_request, …
	Status   tgr.Status     //
	Delivery tgr.DeliveryID // the webhook that asked for it
	Before   tgr.RunID      // only runs with a lower id: the next page
	Limit    int            // how many at most; the server always sets it, from 1 to MaxRuns
}

// MaxRuns is how many runs one call may list.
const MaxRuns = 100

// LogReader reads the logs of jobs. A job has one log per try (tgr.Job.Tries, from 1; 0 asks for the latest).
// Both methods count its lines from 0 and start with line from. The sequences end after the first error; a
// reader may stop early. A try that has logged nothing yields nothing, or an error with the code NotFound.
type LogReader interface {
	// Read yields what has been logged and ends.
	Read(ctx context.Context, job tgr.JobID, try, from int) iter.Seq2[tgr.LogLine, error]
	// Follow yields what has been logged, then what is being logged, until the log is complete or ctx ends.
	Follow(ctx context.Context, job tgr.JobID, try, from int) iter.Seq2[tgr.LogLine, error]
}

// Controller changes runs. What the state does not allow is a *tgr.Error with the code Conflict.
type Controller interface {
	// Cancel asks for a run to be cancelled, or for one job of it where job is not 0. It does not wait for the
	// end; reason and by are shown to whoever asks why. Cancelling twice is no error.
	Cancel(ctx context.Context, run tgr.RunID, job tgr.JobID, reason, by string) error
	// Rerun starts another attempt of a completed run and returns its number.
	Rerun(ctx context.Context, run tgr.RunID, r Rerun) (attempt int, err error)
	// Approve lets a run go on that waits for it, or rejects it. It returns the environment that was decided on, "" for
	// the run as a whole.
	Approve(ctx context.Context, run tgr.RunID, a ApproveRequest) (environment string, err error)
	// Dispatch starts what a workflow_dispatch event would and returns the new runs.
	Dispatch(ctx context.Context, d Dispatch) ([]tgr.RunID, error)
}

// What a Rerun runs again.
const (
	RerunAll    = "all"    // every job
	RerunFailed = "failed" // the jobs that failed or were cancelled, and those that need them
	RerunJob    = "job"    // one job, and those that need it
)

// Rerun says what to run again.
type Rerun struct {
	What string    `json:"what"`             // RerunAll, RerunFailed or RerunJob
	Job  tgr.JobID `json:"job_id,omitempty"` // with RerunJob, and only then
	By   string    `json:"by,omitempty"`     // who asked: shown, not trusted
}

// Dispatch is a workflow_dispatch event.
type Dispatch struct {
	Repo     string            `json:"repo"`             // owner/name
	Workflow string            `json:"workflow"`         // path of the workflow file, or its file name
	Ref      string            `json:"ref,omitempty"`    // branch, tag or full ref; "": the default branch
	Inputs   map[string]string `json:"inputs,omitempty"` //
	By       string            `json:"by,omitempty"`     // who asked: shown, not trusted
}

// Advisor knows what was found out about runs beside running them. All that it says comes from logs and models, and is hostile.
type Advisor interface {
	// Notes returns what there is; ok is false where there is nothing.
	Notes(run tgr.RunID) (n tgr.Notes, ok bool)
	// Answer answers a person's question about a run.
	Answer(ctx context.Context, run tgr.Run, question string) (tgr.Claim, error)
}

// Learned knows what was learnt from runs.
type Learned interface {
	// Insights returns what there is of a repository; forks: of the pull requests of its forks. command, if not "", is a
	// command to tell of.
	Insights(ctx context.Context, repo string, forks bool, command string) (tgr.Insights, error)
	// Estimate is how long a job is likely to take, 0 where that is not known. It never waits.
	Estimate(run tgr.Run, job tgr.Job) time.Duration
	// Learnt lists the repositories of which there is something.
	Learnt(ctx context.Context) ([]tgr.Learnt, error)
}

// Config is what a Server is made of. Runs, Logs and Control are required.
type Config struct {
	tgr.Redacted

	Runs    RunStore
	Logs    LogReader
	Control Controller

	// Settings keeps secrets, variables and environments. Nil: there are none.
	Settings Keeper

	// Ready has a check for each part that must work for the server to do its job: /readyz calls them all.
	Ready map[string]func(context.Context) error
	// Advice is shown with runs. Nil: there is none.
	Advice Advisor
	// Learned is shown at /insights and /api/insights. Nil: the learner is off.
	Learned Learned
	// Schedules lists what is started next by its schedule, the soonest first; repo "": of all repositories. Nil: nothing is.
	Schedules func(ctx context.Context, repo string) ([]tgr.Schedule, error)
	// Metrics are served at /metrics. Nil: metrics of its own.
	Metrics *Metrics
	// Webhook gets POST /webhook. Nil: there is no such path.
	Webhook http.Handler
	// Artifacts are shown and downloaded. Nil: there are none.
	Artifacts ArtifactStore
	// Issuer gets GET /oidc/, for everyone: what others verify identity tokens with. Nil: there is no such path.
	Issuer http.Handler
	// Changed returns a channel that is closed, or gets a value, when something of the run may have changed,
	// and a function that frees it. Nil: streams of events look at the store every Poll.
	Changed func(run tgr.RunID) (changed <-chan struct{}, stop func())

	// Token is what callers of the API and readers of the pages must show. Empty: whoever reaches the server
	// may read what is not of a private repository, and only a peer on this machine may read the rest and
	// change anything.
	Token   string
	Version string       // of the program, shown on pages and at /healthz
	Log     *slog.Logger // nil: nothing is logged

	Heartbeat  time.Duration // between comments on a quiet stream; 0: 15 s
	Poll       time.Duration // how often a stream looks at the store unasked; 0: 0.5 s without Changed, else 5 s
	Shutdown   time.Duration // how long requests may take to end when the server stops; 0: 10 s
	MaxStreams int           // event streams at a time; 0: 256
}
