// Package runner runs one job of a workflow on one machine: steps, shells, contexts, environment and command
// files, workflow commands, masks, and actions. The machine runs processes and moves files; whatever has to be
// decided is decided here, on the host, and what the machine sends is taken for hostile.
//
// https://docs.github.com/en/actions/reference/workflows-and-actions
package runner

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"time"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/workflow"
)

// Machine is where a job runs. It is safe for concurrent use: steps may run in the background, and a Get may be asked for
// by what Exec writes to out.
type Machine interface {
	// Exec runs c and returns when it ended. out gets stdout and stderr in the order they were written; with
	// c.Stderr set, stderr goes there. Nothing is written after Exec returned. Exit is the command's verdict,
	// the error is the machinery's, or the context's after the process group was ended.
	Exec(ctx context.Context, c guest.Cmd, out io.Writer) (guest.Exit, error)
	// Put unpacks a tar stream below dir, which it makes, with its parents, if it is not there.
	Put(ctx context.Context, dir string, tar io.Reader) error
	// Get returns a tar stream of the file or directory; the caller closes it. A path that does not exist is an
	// error that wraps fs.ErrNotExist, from Get itself or from the first Read.
	Get(ctx context.Context, path string) (io.ReadCloser, error)
}

// Sink takes what a job shows while it runs. Its methods are called one at a time. One that blocks holds up the job's
// output, so that a flood is slowed down and not kept in memory.
type Sink interface {
	// Line takes one line of the log, masked.
	Line(tgr.LogLine)
	// Steps takes all steps of the job whenever the state of one changed. The slice is the sink's to keep.
	Steps([]tgr.Step)
}

// CheckoutSource gives the files that actions/checkout asks for. It is called on the host.
type CheckoutSource interface {
	// Checkout makes a tar stream of the working tree, .git included. An error with the code tgr.NotFound or
	// tgr.Invalid is the workflow's fault and fails the step; any other is ours.
	Checkout(ctx context.Context, r CheckoutRequest) (CheckoutResult, error)
}

// CheckoutRequest is the inputs of actions/checkout, read and checked.
type CheckoutRequest struct {
	tgr.Redacted

	Repository         string   // owner/name
	Ref                string   // branch, tag, full ref or commit; "": SHA where the repository is the job's own, else the default branch
	SHA                string   // the commit of the event where Repository is the job's own and no ref was asked for; else ""
	Token              string   // for private repositories; "" is none
	FetchDepth         int      // commits of history; 0: all
	FetchTags          bool     //
	Submodules         string   // "", "true" or "recursive"
	PersistCredentials bool     // leave the token in the checkout's git configuration
	SparseCheckout     []string // patterns; nil: everything
	SparseConeMode     bool     //
	Filter             string   // of a partial clone; overrides SparseCheckout's
	ServerURL          string   // of GitHub, without a slash at its end
}

// CheckoutResult is a working tree.
type CheckoutResult struct {
	SHA string        // the commit, 40 hex digits
	Ref string        // what was checked out, as the action's ref output shows it
	Tar io.ReadCloser // closed by the runner
}

// ActionSource fetches the repositories of remote actions. It is called on the host.
type ActionSource interface {
	// Action returns a tar stream of owner/name at ref, its paths relative to the repository's root, and the
	// commit. The caller closes it. Errors as with CheckoutSource.
	Action(ctx context.Context, repo, ref string) (sha string, tar io.ReadCloser, err error)
}

// Dirs are the directories of a job inside the machine, absolute. The zero value means GitHub's own places.
type Dirs struct {
	Home      string // "": /home/runner
	Workspace string // "": work/<name>/<name> below Home, with the repository's name
	Temp      string // "": work/_temp below Home
	Tools     string // "": /opt/hostedtoolcache
	Actions   string // "": work/_actions below Home
	Commands  string // of scripts and command files, many and small: "": _runner_file_commands below Temp
}

// Config is what a job runs with, whatever the job.
type Config struct {
	tgr.Redacted

	Machine Machine
	// Before, if not nil, is called before each step of the job that runs, with its number and name, while nothing of
	// the job runs in the foreground. Its time counts for the job, not for the step.
	Before   func(ctx context.Context, number int, name string)
	Sink     Sink
	Dirs     Dirs
	Checkout CheckoutSource    // nil: actions/checkout fails and says why
	Actions  ActionSource      // nil: remote actions fail and say why
	Engines  []string          // container engines of the machine that jobs may use, the preferred one first: podman, docker; nil: none
	Nodes    map[string]string // path in the machine of each node runtime: "node20": "/opt/node20/bin/node"
	// Node, if not nil, finds the runtimes of a machine without Nodes, and may take long. The error wraps fs.ErrNotExist
	// if there is none of that name, and is a fault of ours otherwise.
	Node      func(ctx context.Context, name string) (path string, err error)
	Env       map[string]string // the machine's own environment: PATH, LANG, …; PATH and HOME have defaults
	ActionEnv map[string]string // more of it for actions only: ACTIONS_RUNTIME_URL, ACTIONS_RUNTIME_TOKEN, …
	// InputEnv, if not nil, says what an action is told because of its inputs, whose names are in lower case. It wins over all else.
	InputEnv func(inputs map[string]string) map[string]string
	User     string // the guest's user that steps run as; "": the agent's own
	Runner   RunnerInfo
	Limits   Limits
	Now      func() time.Time // nil: time.Now
	// Tape, if not nil, takes down what the job needs to go on when this process has ended and its machine has not. With
	// Resume the job goes on where that recording of it ends: the Job, and the rest of the Config but the functions and
	// the stream to the machine, have to be the same, and Logged is how many lines the Sink was given by then.
	Tape   Tape
	Resume *Recording
	Logged int
	Log    *slog.Logger // nil: nothing is logged. Never gets what a job printed
}

// RunnerInfo describes the machine to the job.
type RunnerInfo struct {
	Name        string   // "": tgr
	OS          string   // "": Linux
	Arch        string   // "": X64
	Environment string   // "": self-hosted
	Notes       []string // lines that Set up job shows: version, isolation, image
}

// Limits bounds what a job may cost the host. The zero value means the defaults, which are given with each field.
type Limits struct {
	LineBytes   int           // of a log line; longer ones are split: 64 KiB
	FileBytes   int64         // of GITHUB_ENV, _OUTPUT, _STATE, _PATH and _STEP_SUMMARY, each: 1 MiB
	ActionFile  int64         // of an action's metadata: 512 KiB
	Masks       int           // values given to add-mask: 10,000
	MaskBytes   int           // of all values to be masked, their encodings included: 4 MiB
	Annotations int           // of each level, per step: 10; and 50 of all levels per job
	Nesting     int           // of composite actions: 10
	Grace       time.Duration // between SIGINT and SIGTERM, and between SIGTERM and SIGKILL: 5 s
}

// Job is one job: what the plan says of it and what was settled when it was queued.
type Job struct {
	tgr.Redacted `json:"-"`

	Plan     *workflow.Plan
	Job      *workflow.Job
	Instance workflow.Instance
	GitHub   map[string]any    // the github context without event, token and what is the runner's to say
	Event    json.RawMessage   // github.event
	Vars     map[string]string // the vars context
	Secrets  map[string]string // the secrets context; GITHUB_TOKEN is added where there is a Token
	Needs    map[string]workflow.Need
	Inputs   map[string]any // the inputs context
	Token    string         // github.token; "" is none
	// WorkflowRef and WorkflowSHA name the file that the job is written in, owner/name/path@ref and its commit, where
	// that is a reusable workflow; "": those of the github context.
	WorkflowRef, WorkflowSHA string
	CheckRun                 int64 // the id of the job's check run on GitHub; 0: not known
	Debug                    bool  // step debugging: show ::debug:: lines, set RUNNER_DEBUG
}

// Summary is what a step wrote to GITHUB_STEP_SUMMARY, masked.
type Summary struct {
	Step     int // number of the step
	Markdown string
}

// Result is how a job ended.
type Result struct {
	Conclusion  tgr.Conclusion    // success, failure, cancelled or timed_out
	Outputs     map[string]string // the job's outputs; those that hold a secret are left out
	Steps       []tgr.Step
	Annotations []tgr.Annotation
	Summaries   []Summary
	Blame       tgr.Blame // whose fault a failure is; "" where there is none
	Reason      string    // why it failed or was cancelled, in one line; "" for success
}

// Causes of a cancelled context that Run puts into words. Any other cause is shown as it is.
var (
	// ErrTimeout is the cause when the job's own time was up.
	ErrTimeout = tgr.Errorf("job.run", tgr.Limit, "the job has exceeded its maximum execution time")
)
