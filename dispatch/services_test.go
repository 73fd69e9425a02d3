package dispatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/runner"
	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/process"
)

// greeter is Services that greet whoever connects with the job's number, and keep what they were asked for.
type greeter struct {
	mu     sync.Mutex
	grants []Grant
	open   int   // sessions that were not ended
	fail   error // of the next Begin
}

func (g *greeter) Begin(_ context.Context, grant Grant, l net.Listener) (Served, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.grants = append(g.grants, grant)
	if err := g.fail; err != nil {
		g.fail = nil
		return Served{}, err
	}
	g.open++
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(conn, "hello job %d\n", grant.Job)
			conn.Close()
		}
	}()
	return Served{Env: map[string]string{"ACTIONS_RESULTS_URL": "http://" + l.Addr().String() + "/"}, End: func() {
		l.Close()
		<-served
		g.mu.Lock()
		defer g.mu.Unlock()
		g.open--
	}}, nil
}

// asked are the jobs that the services began for, in short.
func (g *greeter) asked() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []string
	for _, grant := range g.grants {
		out = append(out, fmt.Sprintf("id-token=%t env=%s mode=%s leased=%t reads=%t stranger=%t api=%s",
			grant.IDToken, grant.Environment, grant.CacheMode, grant.Lease != "", grant.Reads, grant.Stranger, grant.API))
	}
	return strings.Join(out, "\n")
}

// withAction has a composite action in the workspace that connects to the services.
func withAction(t *testing.T, g *greeter) func(*Config) {
	return func(c *Config) {
		c.Services = g
		c.Machines.(*Local).Place = func(m vm.VM) Place {
			home := m.(*process.Machine).Home()
			return Place{Dirs: runner.Dirs{Home: home}, Env: map[string]string{"PATH": "/usr/bin:/bin"}}
		}
	}
}

// TestServices: a job with actions reaches the services over its own machine, and they end with it; one without has none.
func TestServices(t *testing.T) {
	g := &greeter{}
	h := open(t, files{"ci.yml": `
on: push
permissions: {id-token: write}
jobs:
  plain: {runs-on: x, permissions: {}, steps: [{run: "true"}]}
  action:
    runs-on: x
    environment: prod
    cache-mode: read
    steps:
      - run: |
          mkdir a
          echo 'runs: {using: composite, steps: [{shell: bash, run: "true"}]}' > a/action.yml
      - uses: ./a
`}, nil, withAction(t, g))
	runs, jobs := h.push(nil)
	if diff := cmp.Diff("id-token=true env=prod mode=read leased=true reads=false stranger=false api=https://api.github.com", g.asked()); diff != "" || g.open != 0 {
		t.Errorf("services began (-want +got):\n%s\n%d are open", diff, g.open)
	}
	if got := strings.Join(ends(runs, jobs), ", "); strings.Contains(got, "failure") {
		t.Errorf("jobs: %s", got)
	}
}

// A fault of the services is ours and the job is tried again; a mistake of the workflow is its own.
func TestServicesFail(t *testing.T) {
	const source = "on: push\njobs: {a: {runs-on: x, steps: [{uses: ./none}]}}\n"
	for _, tt := range []struct {
		err   error
		blame tgr.Blame
		tries int
		text  string
	}{
		{errors.New("disk full"), tgr.BlameWorkflow, 2, "none"}, // the second try gets as far as the action that is not there
		{tgr.Errorf("results.begin", tgr.Workflow, "cache-mode is 'x'"), tgr.BlameWorkflow, 1, "cache-mode is 'x'"},
	} {
		g := &greeter{fail: tt.err}
		h := open(t, files{"ci.yml": source}, nil, withAction(t, g))
		runs, jobs := h.push(nil)
		j := jobs[runs[0].ID][len(jobs[runs[0].ID])-1]
		if j.Blame != tt.blame || j.Tries != tt.tries || !strings.Contains(j.Reason, tt.text) {
			t.Errorf("%v: blame %s after %d tries: %s; want %s after %d and %q", tt.err, j.Blame, j.Tries, j.Reason, tt.blame, tt.tries, tt.text)
		}
		h.stop()
	}
}

// TestServe connects as an action does, and asks machines that have no ports.
func TestServe(t *testing.T) {
	g := &greeter{}
	p := process.New(process.Config{Agent: []string{agent}, Dir: t.TempDir()})
	h := open(t, files{}, p, withAction(t, g))
	m, release, err := h.d.c.Machines.Acquire(t.Context(), Spec{ID: "m"})
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	l := &Lease{Token: "lease", Job: tgr.Job{ID: 7}, Run: tgr.Run{ID: 1}}
	job := runner.Job{Plan: compile(t, "on: push\njobs: {a: {runs-on: x, steps: [{parallel: [{uses: ./x}]}]}}\n")}
	job.Job = &job.Plan.Jobs[0]
	s := h.d.newSink(l, h.log, h.d.c.Log)
	served, port, err := h.d.serve(t.Context(), m, l, job, s, "")
	if err != nil {
		t.Fatal(err)
	}
	address := strings.TrimSuffix(strings.TrimPrefix(served.Env["ACTIONS_RESULTS_URL"], "http://"), "/")
	if address != port {
		t.Errorf("actions are told of %s, and the port is %s", address, port)
	}
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if b, err := io.ReadAll(conn); err != nil || string(b) != "hello job 7\n" {
		t.Errorf("the port of the machine says %q, %v", b, err)
	}
	served.End()
	if late, err := net.Dial("tcp", address); err == nil {
		if b, err := io.ReadAll(late); len(b) > 0 {
			t.Errorf("after the end it says %q, %v", b, err)
		}
		late.Close()
	}
	bare := *m
	bare.Machine = struct{ runner.Machine }{m.Machine}
	if served, _, err := h.d.serve(t.Context(), &bare, l, job, s, ""); served.Env != nil || err != nil || !h.log.has("There are no caches") {
		t.Errorf("a machine without ports: %v, %v", served.Env, err)
	}
	bare.Machine = portless{m.Machine}
	if served, _, err := h.d.serve(t.Context(), &bare, l, job, s, ""); served.Env != nil || err != nil || !h.log.has("a machine without ports: unsupported operation") {
		t.Errorf("a machine that says it has no ports: %v, %v", served.Env, err)
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
}

// portless is a machine that finds out only when it is asked that it has no ports.
type portless struct{ runner.Machine }

func (portless) Listen(context.Context, string) (net.Listener, error) {
	return nil, fmt.Errorf("a machine without ports: %w", errors.ErrUnsupported)
}

// TestGrantOfOtherRuns: what a job may read of other runs goes by its permissions and by whose code it is.
func TestGrantOfOtherRuns(t *testing.T) {
	for _, tt := range []struct {
		permissions     string
		event           tgr.Event
		reads, stranger bool
	}{
		{"", tgr.Event{Name: "push"}, true, false},
		{"permissions: {actions: read}", tgr.Event{Name: "push"}, true, false},
		{"permissions: write-all", tgr.Event{Name: "workflow_dispatch"}, true, false},
		{"permissions: {contents: read}", tgr.Event{Name: "push"}, false, false},
		{"permissions: {}", tgr.Event{Name: "push"}, false, false},
		{"", tgr.Event{Name: "pull_request", Forked: true}, true, true},
		{"", tgr.Event{Name: "pull_request_target", Forked: true}, true, false},
		{"", tgr.Event{Name: "push", Actor: "dependabot[bot]"}, true, true},
	} {
		job := runner.Job{Plan: compile(t, "on: push\n"+tt.permissions+"\njobs: {a: {runs-on: x, steps: [{uses: ./x}]}}\n"), Token: "the token of the job"}
		job.Job = &job.Plan.Jobs[0]
		g := grant(&Lease{Run: tgr.Run{Event: tt.event}}, job)
		if g.Hides("report") || !g.Hides("report of the token of the job") {
			t.Errorf("%q: the names that the services hide are not those with the token", tt.permissions)
		}
		if g.Reads != tt.reads || g.Stranger != tt.stranger || g.Token != "the token of the job" {
			t.Errorf("%q, %+v: reads %t, stranger %t, want %t, %t", tt.permissions, tt.event, g.Reads, g.Stranger, tt.reads, tt.stranger)
		}
	}
}
