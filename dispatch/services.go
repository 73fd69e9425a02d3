package dispatch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/runner"
	"github.com/terraphim/tgr/workflow"
)

// Services are what the actions of a job talk to: caches, artifacts, identity tokens.
type Services interface {
	// Begin starts the services of one job on a listener that only this job reaches, and which it owns. An error with
	// the code tgr.Workflow is the workflow's fault; any other is ours.
	Begin(ctx context.Context, g Grant, l net.Listener) (Served, error)
}

// Served is services that run. The zero value is none.
type Served struct {
	Env      map[string]string                                // tells actions of them
	InputEnv func(inputs map[string]string) map[string]string // more of it for an action with these inputs; may be nil
	End      func()                                           // ends them with the job, and has to be called; nil: nothing to do
}

// Grant is what the services have to know of a job.
type Grant struct {
	tgr.Redacted

	Run         tgr.Run
	Job         tgr.JobID
	Lease       string // secret of this try of the job
	IDToken     bool   // permissions has id-token: write
	Environment string // the deployment environment; "": none
	CacheMode   string // of the job, "" where it says nothing
	// WorkflowRef and WorkflowSHA name the file that the job is written in, where it is not the run's own.
	WorkflowRef, WorkflowSHA string
	// Of what other runs of the repository have left: where their steps would ask for it, the job's GITHUB_TOKEN, whether
	// that may read actions, and whether the job's code is a stranger's.
	API, Token string
	Reads      bool
	Stranger   bool
	// Hides reports whether a name holds a secret of the job: names of artifacts and caches are shown to others. nil: none does.
	Hides func(name string) bool
}

// Forwarder is a machine whose ports reach this server, as *guest.Client and *vmapi.Machine are.
type Forwarder interface {
	// Listen hands over the connections that are made to a TCP address inside the machine: 127.0.0.1:0 is any port. A
	// machine that cannot do so says so with an error that matches errors.ErrUnsupported.
	Listen(ctx context.Context, addr string) (net.Listener, error)
}

// serve starts the services of a job on a port of its machine, if it has actions that may want them or may have
// identity tokens. The caller ends them. at is where they were in
// an earlier life of the server; "": nowhere.
func (d *Dispatcher) serve(ctx context.Context, m *Machine, l *Lease, job runner.Job, s *sink, at string) (served Served, port string, err error) {
	g := grant(l, job)
	g.API = d.c.Server.API
	if d.c.Services == nil || !g.IDToken && !usesActions(job.Job.Steps) {
		return served, "", nil
	}
	f := m.Ports
	if f == nil {
		f, _ = m.Machine.(Forwarder)
	}
	if f == nil {
		s.say("##[warning]There are no caches, artifacts and identity tokens on this machine: its ports do not reach the server")
		return served, "", nil
	}
	listener, err := f.Listen(ctx, cmp.Or(at, "127.0.0.1:0"))
	if errors.Is(err, errors.ErrUnsupported) {
		s.say("##[warning]There are no caches, artifacts and identity tokens on this machine: %v", err)
		return served, "", nil
	}
	if err != nil {
		return served, "", fmt.Errorf("open the port for caches and artifacts in the machine: %w", err)
	}
	if served, err = d.c.Services.Begin(ctx, g, listener); err != nil {
		listener.Close()
		return Served{}, "", fmt.Errorf("start the services of the job: %w", err)
	}
	return served, listener.Addr().String(), nil
}

// hostPorts are the ports of this host, for jobs that run on it.
type hostPorts struct{}

// Listen implements Forwarder. Whoever is on this host reaches the port, and nobody else: what it serves asks for a token.
func (hostPorts) Listen(ctx context.Context, addr string) (net.Listener, error) {
	at, err := netip.ParseAddrPort(addr)
	if err != nil || !at.Addr().IsLoopback() {
		return nil, fmt.Errorf("listen on %q: it is no loopback address with a port", addr)
	}
	return guest.ListenPort(ctx, at)
}

// grant says what a job may ask of the services. A pull request from a fork gets no identity tokens.
func grant(l *Lease, job runner.Job) Grant {
	allowed := job.Job.Permissions
	if allowed == nil {
		allowed = job.Plan.Permissions
	}
	return Grant{
		Run: l.Run, Job: l.Job.ID, Lease: l.Token, Environment: job.Instance.Environment, CacheMode: job.Job.CacheMode,
		WorkflowRef: job.WorkflowRef, WorkflowSHA: job.WorkflowSHA,
		IDToken: allowed["id-token"] == "write" && Trusted(l.Run.Event),
		Token:   job.Token, Reads: allowed == nil || allowed["actions"] != "", Stranger: !Trusted(l.Run.Event),
		Hides: job.Hides(),
	}
}

func usesActions(steps []workflow.Step) bool {
	for _, s := range steps {
		if s.Uses != "" || usesActions(s.Parallel) {
			return true
		}
	}
	return false
}
