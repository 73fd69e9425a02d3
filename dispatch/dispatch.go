// Package dispatch is the hub: it turns an accepted event into planned runs, decides which jobs may start, gives each
// of them a machine, and records how it ended. Nothing else in the module knows all the rooms.
package dispatch

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/runner"
	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/workflow"
)

// Causes of a job's end that are not its own doing. They are the context's cause in the runner.
var (
	ErrShutdown  = errors.New("the server is stopping")
	ErrLeaseLost = errors.New("the lease was lost")
	errCancelled = errors.New("cancelled")
)

// Jobs is the part of the store that a worker needs. Every write is fenced by the lease's token: a stale one is
// refused with tgr.Conflict.
type Jobs interface {
	// Claim leases a job that may run, or returns ErrNothing. No repository's jobs keep those of another waiting: of which
	// fewest run, has the next; of one repository the oldest is first.
	Claim(ctx context.Context, c Claim) (*Lease, error)
	// Beat extends the lease. A reason means that the job is to be cancelled.
	Beat(ctx context.Context, job tgr.JobID, token string, lease time.Duration) (cancel string, err error)
	// Progress records the steps and the machine of a running job.
	Progress(ctx context.Context, job tgr.JobID, token string, p Progress) error
	// Finish completes the job.
	Finish(ctx context.Context, job tgr.JobID, token string, r JobResult) error
	// Release puts the job back into the queue, for a fault of ours. After too many tries it completes as our failure
	// instead, for that reason. A try that is excused, such as one that ended with the server, is not one of them.
	Release(ctx context.Context, job tgr.JobID, token, reason string, excused bool) error
}

// Runs is the part of the store that planning and the job graph need.
type Runs interface {
	// Planned completes the plan job and replaces the accepted run by what was planned.
	Planned(ctx context.Context, job tgr.JobID, token string, p Planned) ([]tgr.RunID, error)
	// Settle calls fn on the run and the jobs of its attempt, applies its Change, and folds the jobs into the run: all
	// in one transaction. A run that is completed, or waits for its concurrency group, is left alone.
	Settle(ctx context.Context, run tgr.RunID, fn func(tgr.Run, []tgr.Job) (Change, error)) error
	// Nudged lists, once, the runs that are to be settled because another one left, or wants, a concurrency group.
	Nudged() []tgr.RunID
	// Unsettled lists the runs that are not completed.
	Unsettled(ctx context.Context) ([]tgr.RunID, error)
	// Expire takes back the jobs whose lease has ended, or that owner held (if not ""), but for those of except: queued
	// again while a try is left, else completed as our failure.
	Expire(ctx context.Context, owner string, except ...tgr.JobID) ([]tgr.Job, error)
}

// Source is where repositories come from.
type Source interface {
	// Fetch makes the event's commit available and returns it with the SHA filled in.
	Fetch(ctx context.Context, ev tgr.Event) (tgr.Event, error)
	// Workflows returns the files of .github/workflows at the event's commit, sorted by path.
	Workflows(ctx context.Context, ev tgr.Event) ([]File, error)
	// Workflow returns a reusable workflow: of the event's commit where repo is "", else of owner/name at ref. It also
	// returns the ref's full name and the commit that it is now, where repo is given.
	Workflow(ctx context.Context, ev tgr.Event, repo, ref, path string) (w workflow.Loaded, err error)
	// Changed lists the paths that the event changed.
	Changed(ctx context.Context, ev tgr.Event) ([]string, error)
	// Message is the commit message of the event's HeadSHA; tgr.NotFound if it is gone.
	Message(ctx context.Context, ev tgr.Event) (string, error)
	// Checkout serves actions/checkout for a job of this event that has this token of its own.
	Checkout(ev tgr.Event, token string) runner.CheckoutSource
	// Actions serves remote actions likewise; nil: there are none.
	Actions(ev tgr.Event, token string) runner.ActionSource
}

// File is a workflow file. Err says why it could not be read, such as its size.
type File struct {
	Path string
	Data []byte
	Err  error
}

// Machines gives out machines. Release frees the machine, which no other job will use.
type Machines interface {
	Acquire(ctx context.Context, s Spec) (m *Machine, release func(), err error)
}

// Spec is what a job wants of its machine.
type Spec struct {
	ID     string   // unique: names the machine on its host
	Labels []string // runs-on
	Run    tgr.Run  // whose job it is
	Engine bool     // the job needs a container engine
}

// Machine is a machine with an agent that answered.
type Machine struct {
	runner.Machine
	ID        string
	Isolation string        // "qemu (tcg)", "process"
	Kernel    string        // uname -r in the machine
	Boot      time.Duration // from the start of the machine to the agent's first word
	Network   vm.Networked  // nil: its network, if it has one, cannot be changed
	Ports     Forwarder     // nil: those of the runner.Machine, if it is a Forwarder
	// Ended, if not nil, is told how the job ended before the machine is released; what it returns, if anything, is
	// the last line of the job's log.
	Ended func(c tgr.Conclusion) string
	// Before, if not nil, is called before each step; what it returns, if anything, is a line of the job's log.
	Before func(ctx context.Context, number int, name string) string
	// Leave, if not nil, lets go of the machine, which goes on, for the next server to adopt; the release that Acquire
	// returned does nothing after it.
	Leave func() error
	Place
}

// Adopter is a Machines that can take over a machine which an earlier server has left running.
type Adopter interface {
	// Adopt takes over the machine of this id, which a job as in s runs on. After an error nothing of it is left.
	Adopt(ctx context.Context, s Spec, id string) (m *Machine, release func(), err error)
}

// Place is what a job has to know of the inside of a machine.
type Place struct {
	Dirs    runner.Dirs
	Nodes   map[string]string                                               // "node20": path of node
	Node    func(ctx context.Context, name string) (path string, err error) // runner.Config.Node
	Engines []string                                                        // container engines that jobs may use, if the machine has them; nil: none
	Env     map[string]string                                               // the machine's own environment
	User    string                                                          // that steps run as; "": the agent's own
}

// Logs keeps what jobs print.
type Logs interface {
	// Create starts the log of one try of a job. The caller closes it.
	Create(job tgr.JobID, try int) (Log, error)
}

// Log is the log of one job. Append may be called from one goroutine at a time.
type Log interface {
	Append(lines ...tgr.LogLine) error
	// Flush returns when the lines so far outlive this process.
	Flush() error
	// Steps is how many lines are in the log that are of a step, and not the server's own.
	Steps() (int, error)
	io.Closer
}

// Observer is told what happened, for metrics and for who watches. Its methods must not block.
// The zero value watches nothing.
type Observer struct {
	Planned  func(d time.Duration)
	Acquired func(isolation string, wait, boot time.Duration)
	Stepped  func(c tgr.Conclusion, d time.Duration)
	Finished func(run tgr.Run, job tgr.Job, r JobResult)
	Line     func(job tgr.Job, l tgr.LogLine)
	Steps    func(job tgr.Job, steps []tgr.Step)
	Settled  func(run tgr.RunID)
	Faulted  func(b tgr.Blame)
}

// Annotator is told of every run that was planned, once its jobs are stored and may start. What it does about it is
// nothing that a job waits for: Annotate must not block.
type Annotator interface {
	Annotate(run tgr.RunID, ev tgr.Event, p PlannedRun)
}

// Learner learns from jobs with their steps once their end is durable, and may know better than the default how long one
// should take. A job waits for neither: both must return at once, and an error of the learner is its own.
type Learner interface {
	Finished(run tgr.RunID, job tgr.JobID)
	// Timeout is for a job whose workflow states none; 0: the default.
	Timeout(run tgr.Run, job tgr.Job) time.Duration
}

// Config is what a Dispatcher is made of. Jobs, Runs, Source, Machines and Logs are required.
type Config struct {
	Jobs     Jobs
	Runs     Runs
	Source   Source
	Machines Machines
	Logs     Logs
	// Edit, if not nil, may change a plan before it is stored, and Keep says which instances of a matrix are wanted:
	// for a person who runs a part of a workflow.
	Edit func(p *workflow.Plan) error
	Keep func(in workflow.Instance) bool

	// Target has a pull_request planned as a pull_request_target as well: one webhook of GitHub's stands for both.
	Target bool
	// Labels are those that Machines has machines for; a job that asks for another fails before it is queued. nil: any.
	Labels Labels

	Annotate Annotator                                     // nil: none
	Learn    Learner                                       // nil: none
	Vault    Vault                                         // nil: there are no secrets, no variables and no environments
	Tokens   Tokens                                        // nil: jobs get no token
	Revoke   func(ctx context.Context, token string) error // ends a token's life; nil: it expires
	Hold     func(tgr.Event) string                        // why a run waits until somebody approves it, or ""; nil: none does
	Services Services                                      // nil: there are no caches, artifacts and identity tokens
	// Egress says what the jobs of a run may reach of the network, where machines have one; nil: nothing.
	Egress func(run tgr.Run) vm.Egress
	// CheckRun finds GitHub's id of a job's check run, for the job context; 0: it is not known, or not yet. nil: none.
	CheckRun func(ctx context.Context, job tgr.JobID) int64
	// Tapes is where running jobs are kept for a server that starts again, and Resume are those that this one goes on with.
	// Leave reports, when the server's context has ended, whether it is followed by another, so that machines are left
	// running. nil: jobs end with their server.
	Tapes    *Tapes
	Resume   []*Resumption
	Leave    func() bool
	Observe  Observer
	Log      *slog.Logger
	Owner    string        // this server's name in leases; "": a random one
	Workers  int           // jobs at once; 0: 5
	Planners int           // events planned at once; 0: 2
	Lease    time.Duration // 0: 60 s
	Plan     time.Duration // how long planning an event may take; 0: 5 min
	Acquire  time.Duration // how long a machine may take to come up; 0: 2 min
	Most     time.Duration // how long a job may take, whatever its workflow says; 0: as long as a workflow may say
	Server   Server        // what the github context says of the server
	Now      func() time.Time
}

// Server is how GitHub, or an Enterprise server, is addressed in contexts.
type Server struct {
	URL     string // github.server_url; "": https://github.com
	API     string // github.api_url; "": https://api.github.com
	GraphQL string // github.graphql_url

	Retention int // github.retention_days, which clients hold what a workflow asks for against; 0: 90
}

func (c Config) orDefaults() Config {
	if c.Owner == "" {
		c.Owner = tgr.NewToken()
	}
	if c.Workers <= 0 {
		c.Workers = 5
	}
	if c.Planners <= 0 {
		c.Planners = 2
	}
	if c.Lease <= 0 {
		c.Lease = time.Minute
	}
	if c.Plan <= 0 {
		c.Plan = 5 * time.Minute
	}
	if c.Acquire <= 0 {
		c.Acquire = 2 * time.Minute
	}
	if c.Most <= 0 {
		c.Most = workflow.MaxTimeout * time.Minute
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.CheckRun == nil {
		c.CheckRun = func(context.Context, tgr.JobID) int64 { return 0 }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Leave == nil {
		c.Leave = func() bool { return false }
	}
	if c.Vault == nil {
		c.Vault = noVault{}
	}
	if c.Tokens == nil {
		c.Tokens = func(context.Context, TokenRequest) (Token, error) { return Token{}, nil }
	}
	if c.Hold == nil {
		c.Hold = func(tgr.Event) string { return "" }
	}
	if c.Server.URL == "" {
		c.Server.URL, c.Server.API, c.Server.GraphQL = "https://github.com", "https://api.github.com", "https://api.github.com/graphql"
	}
	if c.Server.Retention <= 0 {
		c.Server.Retention = 90
	}
	return c
}

// noVault is empty.
type noVault struct{}

// Secrets implements Vault.
func (noVault) Secrets(context.Context, tgr.Run, string) (map[string]string, error) { return nil, nil }

// Variables implements Vault.
func (noVault) Variables(context.Context, tgr.Run, string) (map[string]string, error) {
	return nil, nil
}

// Environment implements Vault.
func (noVault) Environment(_ context.Context, _ tgr.Run, name string) (tgr.Environment, error) {
	return tgr.Environment{Name: name}, nil
}
