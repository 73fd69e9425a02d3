package dispatch

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/runner"
	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/process"
	"github.com/terraphim/tgr/workflow"
)

// agent is the guest's agent, built once.
var agent string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "tgr-dispatch-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	agent = filepath.Join(dir, "tgr-guest")
	build := exec.Command("go", "build", "-o", agent, "../cmd/tgr-guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the agent: %v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// files is a Source of workflow files, without a repository.
type files map[string]string

func (f files) Fetch(_ context.Context, ev tgr.Event) (tgr.Event, error) {
	if why, ok := f["unreachable"]; ok {
		return ev, tgr.Errorf("source.fetch", tgr.NotFound, "%s", why)
	}
	return ev, nil
}

func (f files) Workflows(context.Context, tgr.Event) ([]File, error) {
	var out []File
	for _, path := range slices.Sorted(maps.Keys(f)) {
		data := f[path]
		if strings.Contains(path, "/") {
			continue // of another repository
		}
		out = append(out, File{Path: ".github/workflows/" + path, Data: []byte(data)})
	}
	return out, nil
}

func (f files) Workflow(_ context.Context, _ tgr.Event, repo, ref, path string) (workflow.Loaded, error) {
	name := repo + "/" + path + "@" + ref
	if data, ok := f[name]; ok {
		return workflow.Loaded{Data: []byte(data), Ref: "refs/tags/" + ref, SHA: strings.Repeat("c", 40)}, nil
	}
	return workflow.Loaded{}, tgr.Errorf("source.workflow", tgr.NotFound, "there is no %s", name)
}

func (f files) Message(context.Context, tgr.Event) (string, error) {
	if f["message/"] == "" {
		return "", tgr.Errorf("source.fetch", tgr.NotFound, "the head is gone")
	}
	return f["message/"], nil
}

func (f files) Changed(context.Context, tgr.Event) ([]string, error) { return nil, nil }
func (f files) Checkout(tgr.Event, string) runner.CheckoutSource     { return nil }
func (f files) Actions(tgr.Event, string) runner.ActionSource        { return nil }

// capture keeps logs in memory.
type capture struct {
	mu    sync.Mutex
	lines []string
}

func (c *capture) Create(tgr.JobID, int) (Log, error) { return c, nil }
func (c *capture) Close() error                       { return nil }
func (c *capture) Flush() error                       { return nil }
func (c *capture) Steps() (int, error)                { return 0, nil }

func (c *capture) Append(lines ...tgr.LogLine) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range lines {
		c.lines = append(c.lines, l.Text)
	}
	return nil
}

func (c *capture) has(text string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.lines {
		if strings.Contains(l, text) {
			return true
		}
	}
	return false
}

// hall is a dispatcher with everything around it.
type hall struct {
	t      *testing.T
	memory *Memory
	log    *capture
	d      *Dispatcher
	stop   func()
}

// open starts a dispatcher on processes, or on the provider.
func open(t *testing.T, source files, p vm.Provider, change func(*Config)) *hall {
	t.Helper()
	h := &hall{t: t, memory: &Memory{}, log: &capture{}}
	if p == nil {
		p = process.New(process.Config{Agent: []string{agent}, Dir: t.TempDir()})
	}
	c := Config{
		Jobs: h.memory, Runs: h.memory, Source: source, Logs: h.log, Acquire: time.Minute,
		Machines: &Local{Provider: p, Shared: true, Log: slog.New(slog.DiscardHandler), Place: func(m vm.VM) Place {
			home := t.TempDir()
			return Place{
				Dirs: runner.Dirs{Home: home, Workspace: home + "/ws", Temp: home + "/temp", Tools: home + "/tools", Actions: home + "/actions"},
				Env:  map[string]string{"PATH": os.Getenv("PATH")},
			}
		}},
	}
	if change != nil {
		change(&c)
	}
	h.d = New(c)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.d.Run(ctx) }()
	h.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(h.stop)
	return h
}

// push has an event accepted and waits until its runs are completed, or until ready says that it has seen enough.
func (h *hall) push(ready func(runs []tgr.Run, jobs map[tgr.RunID][]tgr.Job) bool) ([]tgr.Run, map[tgr.RunID][]tgr.Job) {
	h.t.Helper()
	h.memory.Accept(tgr.Event{Name: "push", Ref: "refs/heads/main", SHA: strings.Repeat("a", 40), Repo: tgr.Repo{FullName: "a/b"}, Payload: []byte(`{}`)})
	h.d.Wake()
	return h.await(ready)
}

func (h *hall) await(ready func(runs []tgr.Run, jobs map[tgr.RunID][]tgr.Job) bool) ([]tgr.Run, map[tgr.RunID][]tgr.Job) {
	h.t.Helper()
	if ready == nil {
		ready = func(runs []tgr.Run, _ map[tgr.RunID][]tgr.Job) bool {
			for _, r := range runs {
				if !r.Status.Done() {
					return false
				}
			}
			return true
		}
	}
	deadline := time.After(2 * time.Minute)
	for tick := time.Tick(5 * time.Millisecond); ; {
		runs, jobs := h.memory.All()
		if ready(runs, jobs) {
			return runs, jobs
		}
		select {
		case <-tick:
		case <-deadline:
			h.t.Fatalf("still waiting: runs %+v, jobs %+v", runs, jobs)
		}
	}
}

// ends are the jobs of all runs in short.
func ends(runs []tgr.Run, jobs map[tgr.RunID][]tgr.Job) []string {
	var out []string
	for _, r := range runs {
		for _, j := range jobs[r.ID] {
			if j.Kind == tgr.WorkJob {
				out = append(out, j.Name+" "+string(j.Conclusion))
			}
		}
	}
	return out
}

func TestRunToTheEnd(t *testing.T) {
	h := open(t, files{"ci.yml": `
on: push
jobs:
  build:
    runs-on: x
    outputs: {v: "${{ steps.s.outputs.v }}"}
    steps:
      - {id: s, run: 'echo v=42 >> "$GITHUB_OUTPUT"'}
  test:
    needs: build
    runs-on: x
    steps: [{run: 'echo "the answer is ${{ needs.build.outputs.v }}"; exit 3'}]
  after: {needs: test, runs-on: x, steps: [{run: "true"}]}
  always: {needs: [test, after], if: always(), runs-on: x, steps: [{run: 'echo "test: ${{ needs.test.result }}, after: ${{ needs.after.result }}"'}]}
`}, nil, nil)
	runs, jobs := h.push(nil)
	want := []string{"build success", "test failure", "after skipped", "always success"}
	got := ends(runs, jobs)
	if diff := cmp.Diff(slices.Sorted(slices.Values(want)), slices.Sorted(slices.Values(got))); diff != "" {
		t.Errorf("jobs (-want +got):\n%s", diff)
	}
	if runs[0].Conclusion != tgr.Failure {
		t.Errorf("the run's conclusion is %s, and a job failed", runs[0].Conclusion)
	}
	for _, line := range []string{"the answer is 42", "test: failure, after: skipped"} {
		if !h.log.has(line) {
			t.Errorf("the log has no line %q", line)
		}
	}
	for _, j := range jobs[runs[0].ID] {
		if j.Name == "test" && (j.Blame != tgr.BlameUser || j.Tries != 1) {
			t.Errorf("test: blame %q after %d tries, want the user's after 1", j.Blame, j.Tries)
		}
	}
}

// A workflow that cannot be compiled fails with file, line and column, and the others run.
func TestBrokenWorkflows(t *testing.T) {
	h := open(t, files{
		"good.yml":    "on: push\njobs:\n  a: {runs-on: x, steps: [{run: \"true\"}]}\n",
		"yaml.yml":    "on: push\njobs: [\n",
		"cycle.yml":   "on: push\njobs:\n  a: {needs: b, runs-on: x, steps: [{run: x}]}\n  b: {needs: a, runs-on: x, steps: [{run: x}]}\n",
		"context.yml": "on: push\njobs:\n  a: {runs-on: x, steps: [{run: \"${{ githob.sha }}\"}]}\n",
		"huge.yml":    "on: push\n# " + strings.Repeat("x", 5<<20) + "\n",
		"matrix.yml":  "on: push\njobs:\n  a:\n    strategy: {matrix: {a: [" + strings.Repeat("1, ", 99) + "1], b: [" + strings.Repeat("1, ", 99) + "1]}}\n    runs-on: x\n    steps: [{run: x}]\n",
		"other.yml":   "on: pull_request\njobs:\n  a: {runs-on: x, steps: [{run: \"true\"}]}\n",
	}, nil, nil)
	runs, jobs := h.push(nil)
	got := map[string]string{}
	for _, r := range runs {
		got[filepath.Base(r.WorkflowFile)] = string(r.Conclusion)
		reason := r.Reason
		for _, j := range jobs[r.ID] {
			reason += j.Reason
		}
		if r.Conclusion != tgr.Success && !strings.Contains(reason, r.WorkflowFile) {
			t.Errorf("%s: the reason does not name the file: %s", r.WorkflowFile, reason)
		}
	}
	delete(got, "matrix.yml") // may be refused when it is compiled or when it is expanded
	want := map[string]string{"good.yml": "success", "yaml.yml": "startup_failure", "cycle.yml": "startup_failure",
		"context.yml": "startup_failure", "huge.yml": "startup_failure"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("runs (-want +got):\n%s", diff)
	}
}

// A commit whose message says so starts nothing, and the reason says why.
func TestSkipCI(t *testing.T) {
	h := open(t, files{"ci.yml": "on: push\njobs:\n  a: {runs-on: x, steps: [{run: \"true\"}]}\n"}, nil, nil)
	h.memory.Accept(tgr.Event{Name: "push", Ref: "refs/heads/main", Repo: tgr.Repo{FullName: "a/b"},
		Payload: []byte(`{"head_commit": {"message": "Fix a typo\n\n[skip ci]"}}`)})
	h.d.Wake()
	runs, jobs := h.await(nil)
	if runs[0].Conclusion != tgr.Skipped || !strings.Contains(runs[0].Reason, "[skip ci]") || len(ends(runs, jobs)) != 0 {
		t.Errorf("run %s: %q, jobs %v; want it skipped, for that reason", runs[0].Conclusion, runs[0].Reason, ends(runs, jobs))
	}
}

// The head commit of a pull request keeps its workflows from running as well, but for those of pull_request_target.
func TestSkipCIOfPulls(t *testing.T) {
	for _, tt := range []struct{ message, on, want string }{
		{"docs [skip ci]", "[pull_request, pull_request_target]", "pull_request_target"},
		{"docs [skip ci]", "pull_request", "the commit's message says [skip ci]: nothing runs"},
		{"docs", "pull_request", "pull_request"},
		{"", "pull_request", "pull_request"}, // it was not found
	} {
		source := files{"ci.yml": workOn(tt.on), "message/": tt.message}
		d := New(Config{Source: source, Target: true})
		p, err := d.compileAll(t.Context(), onMain("pull_request"), d.newSink(&Lease{}, &capture{}, slog.New(slog.DiscardHandler)))
		if err != nil {
			t.Fatal(err)
		}
		got := p.Reason
		for _, r := range p.Runs {
			if got = "pull_request"; r.Event != nil {
				got = r.Event.Name
			}
		}
		if got != tt.want || len(p.Runs) > 1 {
			t.Errorf("%q, on %s: %d runs, %q; want %q", tt.message, tt.on, len(p.Runs), got, tt.want)
		}
	}
}

// Who starts a workflow by hand that is not there, or that cannot be started so, sees that it failed, and why.
func TestDispatchOfWhatIsNotThere(t *testing.T) {
	for asked, want := range map[string]string{
		"none.yml":                 "none.yml cannot be started: there is no such workflow at refs/heads/main",
		".github/workflows/ci.yml": ".github/workflows/ci.yml cannot be started: on: the workflow does not listen to 'workflow_dispatch'",
		"hand.yml":                 "",
		"broken.yml":               "",
	} {
		ev := onMain("workflow_dispatch")
		ev.Payload = []byte(fmt.Sprintf(`{"workflow": %q}`, asked))
		p, _, err := compiled(t, files{"ci.yml": workOn("push"), "hand.yml": workOn("workflow_dispatch"), "broken.yml": "on: ["}, ev, time.Now())
		if err != nil && (tgr.MessageOf(err) != want || tgr.CodeOf(err) != tgr.NotFound) || err == nil && (want != "" || len(p.Runs) != 1) {
			t.Errorf("%s: %d runs, %v; want %q", asked, len(p.Runs), err, want)
		}
	}
}

func TestSkipMark(t *testing.T) {
	for message, want := range map[string]string{
		"":                                    "",
		"fix":                                 "",
		"fix [ci skip] it":                    "[ci skip]",
		"fix\n\nlong text [actions skip]\n":   "[actions skip]",
		"fix\n\n\nskip-checks: true\n":        "skip-checks: true",
		"fix\r\n\r\n\r\nskip-checks:true\r\n": "skip-checks:true",
		"fix\n\n\nSigned-off-by: a\nskip-checks: true": "skip-checks: true",
		"fix\n\n\nskip-checks: true\nSigned-off-by: a": "",
		"fix\n\nskip-checks: true":                     "",
		"skip-checks: true":                            "",
		"fix\n\n\nskip-checks: false":                  "",
	} {
		if got := skipMark(message); got != want {
			t.Errorf("%q: %q, want %q", message, got, want)
		}
	}
}

func TestUnreachableSource(t *testing.T) {
	h := open(t, files{"unreachable": "commit aaaa of a/b is gone"}, nil, nil)
	runs, jobs := h.push(nil)
	if runs[0].Conclusion != tgr.Failure || !strings.Contains(jobs[1][0].Reason, "commit aaaa of a/b is gone") {
		t.Errorf("run %+v, plan job %+v: want a failure with the reason", runs[0], jobs[1][0])
	}
}

func TestFailFastAndMaxParallel(t *testing.T) {
	var mu sync.Mutex
	running, most := 0, 0
	h := open(t, files{"ci.yml": `
on: push
jobs:
  a:
    strategy: {max-parallel: 2, fail-fast: false, matrix: {n: [1, 2, 3, 4]}}
    runs-on: x
    steps: [{run: "exit $(( ${{ matrix.n }} % 2 ))"}]
  b:
    strategy: {matrix: {n: [1, 2]}}
    runs-on: x
    steps: [{run: "if [ ${{ matrix.n }} = 1 ]; then exit 1; fi; sleep 600"}]
`}, nil, func(c *Config) {
		c.Workers = 8
		c.Lease = 2 * time.Second
		inner := c.Machines
		c.Machines = acquireFunc(func(ctx context.Context, s Spec) (*Machine, func(), error) {
			m, release, err := inner.Acquire(ctx, s)
			if s.Labels[0] != "x" {
				t.Errorf("labels %v, want x", s.Labels)
			}
			mu.Lock()
			running++
			most = max(most, running)
			mu.Unlock()
			return m, func() {
				mu.Lock()
				running--
				mu.Unlock()
				release()
			}, err
		})
	})
	runs, jobs := h.push(nil)
	want := []string{"a (1) failure", "a (2) success", "a (3) failure", "a (4) success", "b (1) failure", "b (2) cancelled"}
	if diff := cmp.Diff(want, slices.Sorted(slices.Values(ends(runs, jobs)))); diff != "" {
		t.Errorf("jobs (-want +got):\n%s", diff)
	}
	if most > 4 {
		t.Errorf("%d jobs ran at once: max-parallel of a is 2, and b has 2", most)
	}
}

func TestCancel(t *testing.T) {
	h := open(t, files{"ci.yml": `
on: push
jobs:
  long:
    runs-on: x
    steps:
      - run: echo started; sleep 600
      - {if: cancelled(), run: echo cleaning up}
  after: {needs: long, runs-on: x, steps: [{run: "true"}]}
`}, nil, func(c *Config) { c.Lease = 2 * time.Second })
	h.push(func([]tgr.Run, map[tgr.RunID][]tgr.Job) bool { return h.log.has("started") })
	h.memory.Cancel("by ada")
	if err := h.d.Settle(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	runs, jobs := h.await(nil)
	if diff := cmp.Diff([]string{"after cancelled", "long cancelled"}, slices.Sorted(slices.Values(ends(runs, jobs)))); diff != "" {
		t.Errorf("jobs (-want +got):\n%s", diff)
	}
	if runs[0].Conclusion != tgr.Cancelled || !h.log.has("cleaning up") {
		t.Errorf("conclusion %s; did the cancelled() step run: %v", runs[0].Conclusion, h.log.has("cleaning up"))
	}
}

// What waits for a job that was cancelled before it ran is decided on at once, however many wait for each other, and not
// when the server next looks at all its runs.
func TestCancelOfAChain(t *testing.T) {
	h := open(t, files{"ci.yml": `
on: push
jobs:
  a: {runs-on: x, steps: [{run: "echo started; sleep 600"}]}
  b: {needs: a, runs-on: x, steps: [{run: "true"}]}
  c: {needs: b, if: failure(), runs-on: x, steps: [{run: "true"}]}
  d: {needs: c, runs-on: x, steps: [{run: "true"}]}
`}, nil, nil)
	h.push(func([]tgr.Run, map[tgr.RunID][]tgr.Job) bool { return h.log.has("started") })
	h.stop() // a is queued again, and nobody but us settles
	h.memory.Cancel("by ada")
	if err := h.d.Settle(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	runs, jobs := h.memory.All()
	want := []string{"a cancelled", "b cancelled", "c cancelled", "d cancelled"}
	if diff := cmp.Diff(want, slices.Sorted(slices.Values(ends(runs, jobs)))); diff != "" || runs[0].Conclusion != tgr.Cancelled {
		t.Errorf("the run is %s %s (-want +got):\n%s", runs[0].Status, runs[0].Conclusion, diff)
	}
}

// A server that stops puts its jobs back, and the next one runs them.
func TestShutdown(t *testing.T) {
	source := files{"ci.yml": "on: push\njobs:\n  a: {runs-on: x, steps: [{run: 'echo started; [ -e " + filepath.Join(t.TempDir(), "go") + " ] || sleep 600'}]}\n"}
	flag := strings.Split(strings.Split(source["ci.yml"], "-e ")[1], " ]")[0]
	h := open(t, source, nil, nil)
	h.push(func([]tgr.Run, map[tgr.RunID][]tgr.Job) bool { return h.log.has("started") })
	h.stop()
	_, jobs := h.memory.All()
	if j := jobs[1][1]; j.Status != tgr.Queued || !strings.Contains(j.Reason, "the server was stopped") {
		t.Fatalf("after the stop the job is %s: %q; want it queued", j.Status, j.Reason)
	}
	if err := os.WriteFile(flag, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	next := open(t, source, nil, func(c *Config) { c.Jobs, c.Runs = h.memory, h.memory })
	next.memory = h.memory
	runs, jobs := next.await(nil)
	if j := jobs[1][1]; runs[0].Conclusion != tgr.Success || j.Tries != 2 {
		t.Errorf("the run ended as %s after %d tries, want success after 2", runs[0].Conclusion, j.Tries)
	}
}

// acquireFunc is a Machines in one function.
type acquireFunc func(context.Context, Spec) (*Machine, func(), error)

func (f acquireFunc) Acquire(ctx context.Context, s Spec) (*Machine, func(), error) { return f(ctx, s) }

// rogue is a provider of machines whose agent is not ours.
type rogue struct{ serve func(conn net.Conn) }

func (r rogue) Start(context.Context, vm.Spec) (vm.VM, error) {
	if r.serve == nil {
		return nil, &vm.BootError{ID: "m", Console: "Kernel panic - not syncing", Err: errors.New("it powered off")}
	}
	return &rogueVM{rogue: r}, nil
}

type rogueVM struct {
	rogue
	mu    sync.Mutex
	conns []net.Conn
}

func (m *rogueVM) Dial(context.Context) (net.Conn, error) {
	ours, theirs := net.Pipe()
	m.mu.Lock()
	m.conns = append(m.conns, theirs)
	m.mu.Unlock()
	go m.serve(theirs)
	return ours, nil
}

func (m *rogueVM) Wait(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func (m *rogueVM) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.conns {
		c.Close()
	}
	return nil
}

// Whatever the guest does, its job ends as our fault, in bounded time, and others do not notice.
func TestHostileGuests(t *testing.T) {
	tests := map[string]func(net.Conn){
		"does not boot": nil,
		"is silent":     func(c net.Conn) { io.Copy(io.Discard, c) },
		"talks garbage": func(c net.Conn) {
			go io.Copy(io.Discard, c)
			io.Copy(c, io.LimitReader(rand.Reader, 16<<20))
		},
		"floods": func(c net.Conn) {
			go io.Copy(io.Discard, c)
			for junk := make([]byte, 64<<10); ; {
				if _, err := c.Write(junk); err != nil {
					return
				}
			}
		},
		"hangs up": func(c net.Conn) { c.Close() },
	}
	for name, serve := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := open(t, files{"ci.yml": "on: push\njobs:\n  a: {runs-on: x, steps: [{run: \"true\"}]}\n"}, rogue{serve},
				func(c *Config) { c.Acquire = 500 * time.Millisecond })
			runs, jobs := h.push(nil)
			j := jobs[1][1]
			if runs[0].Conclusion != tgr.Failure || j.Blame != tgr.BlameOurs || j.Tries != maxTries || j.Reason == "" {
				t.Errorf("run %s, job blamed on %q after %d tries: %q; want our failure after %d", runs[0].Conclusion, j.Blame, j.Tries, j.Reason, maxTries)
			}
			if serve == nil && !strings.Contains(j.Reason, "Kernel panic") {
				t.Errorf("the reason does not show the console: %q", j.Reason)
			}
		})
	}
}
