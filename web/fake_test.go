package web

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/terraphim/tgr"
)

// memory is a small real RunStore, LogReader and Controller: all in memory, with notification.
type memory struct {
	mu      sync.Mutex
	runs    map[tgr.RunID]tgr.Run
	jobs    map[tgr.JobID]tgr.Job
	logs    map[logKey]*memoryLog
	changed chan struct{} // closed and replaced by every change
	calls   []string      // of the Controller
	fail    error         // what every call returns, if not nil
}

type logKey struct {
	job tgr.JobID
	try int
}

type memoryLog struct {
	lines  []tgr.LogLine
	closed bool
}

func newMemory() *memory {
	return &memory{runs: map[tgr.RunID]tgr.Run{}, jobs: map[tgr.JobID]tgr.Job{}, logs: map[logKey]*memoryLog{}, changed: make(chan struct{})}
}

// update changes the store and tells everyone who waits.
func (m *memory) update(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *memory) setRun(r tgr.Run) { m.update(func() { m.runs[r.ID] = r }) }
func (m *memory) setJob(j tgr.Job) { m.update(func() { m.jobs[j.ID] = j }) }

func (m *memory) append(job tgr.JobID, try int, lines ...tgr.LogLine) {
	m.update(func() {
		k := logKey{job, try}
		if m.logs[k] == nil {
			m.logs[k] = &memoryLog{}
		}
		m.logs[k].lines = append(m.logs[k].lines, lines...)
	})
}

func (m *memory) closeLog(job tgr.JobID, try int) {
	m.update(func() { m.logs[logKey{job, try}].closed = true })
}

func (m *memory) Changed(tgr.RunID) (<-chan struct{}, func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed, func() {}
}

func (m *memory) Runs(_ context.Context, f Filter) ([]tgr.Run, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var runs []tgr.Run
	for _, r := range m.runs {
		if (f.Repo == "" || f.Repo == r.Event.Repo.FullName) && (f.Status == "" || f.Status == r.Status) && (f.Before == 0 || r.ID < f.Before) {
			runs = append(runs, r)
		}
	}
	slices.SortFunc(runs, func(a, b tgr.Run) int { return int(b.ID - a.ID) })
	return runs[:min(len(runs), f.Limit)], m.fail
}

func (m *memory) Run(_ context.Context, id tgr.RunID) (tgr.Run, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r, ok := m.runs[id]; ok || m.fail != nil {
		return r, m.fail
	}
	return tgr.Run{}, tgr.Errorf("memory", tgr.NotFound, "no run %d in memory", id)
}

func (m *memory) Jobs(_ context.Context, run tgr.RunID, attempt int) ([]tgr.Job, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var jobs []tgr.Job
	for _, j := range m.jobs {
		if j.Run == run && j.Attempt == attempt {
			jobs = append(jobs, j)
		}
	}
	slices.SortFunc(jobs, func(a, b tgr.Job) int { return int(a.ID - b.ID) })
	return jobs, m.fail
}

func (m *memory) Job(_ context.Context, id tgr.JobID) (tgr.Job, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if j, ok := m.jobs[id]; ok || m.fail != nil {
		return j, m.fail
	}
	return tgr.Job{}, tgr.Errorf("memory", tgr.NotFound, "no job %d in memory", id)
}

func (m *memory) Read(_ context.Context, job tgr.JobID, try, from int) iter.Seq2[tgr.LogLine, error] {
	return func(yield func(tgr.LogLine, error) bool) {
		lines, _, _, err := m.log(job, try, from)
		for _, l := range lines {
			if !yield(l, nil) {
				return
			}
		}
		if err != nil {
			yield(tgr.LogLine{}, err)
		}
	}
}

func (m *memory) Follow(ctx context.Context, job tgr.JobID, try, from int) iter.Seq2[tgr.LogLine, error] {
	return func(yield func(tgr.LogLine, error) bool) {
		for {
			lines, closed, changed, err := m.log(job, try, from)
			if err != nil {
				yield(tgr.LogLine{}, err)
				return
			}
			for _, l := range lines {
				from++
				if !yield(l, nil) {
					return
				}
			}
			if closed {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				yield(tgr.LogLine{}, context.Cause(ctx))
				return
			}
		}
	}
}

func (m *memory) log(job tgr.JobID, try, from int) (lines []tgr.LogLine, closed bool, changed chan struct{}, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if try == 0 {
		try = max(m.jobs[job].Tries, 1)
	}
	l := m.logs[logKey{job, try}]
	if l == nil {
		return nil, true, nil, tgr.Errorf("memory", tgr.NotFound, "job %d has no log", job)
	}
	return slices.Clone(l.lines[min(from, len(l.lines)):]), l.closed, m.changed, nil
}

func (m *memory) Cancel(_ context.Context, run tgr.RunID, job tgr.JobID, reason, by string) error {
	return m.call("cancel " + run.String() + " " + job.String() + " " + reason + " " + by)
}

func (m *memory) Rerun(_ context.Context, run tgr.RunID, r Rerun) (int, error) {
	return 2, m.call("rerun " + run.String() + " " + r.What + " " + r.Job.String() + " " + r.By)
}

func (m *memory) Approve(_ context.Context, run tgr.RunID, a ApproveRequest) (string, error) {
	return a.Environment, m.call(fmt.Sprintf("approve %d %s %t %s %s", run, a.Environment, a.Reject, a.Comment, a.By))
}

func (m *memory) Settings(_ context.Context, kind string, s tgr.Scope) ([]tgr.Setting, error) {
	return []tgr.Setting{{Scope: s, Name: "A"}}, m.call("list " + kind + " of " + s.String())
}

func (m *memory) SetSetting(_ context.Context, kind string, s tgr.Setting) error {
	return m.call("set " + kind + " " + s.Name + "=" + s.Value + " of " + s.Scope.String())
}

func (m *memory) RemoveSetting(_ context.Context, kind string, s tgr.Setting) error {
	return m.call("remove " + kind + " " + s.Name + " of " + s.Scope.String())
}

func (m *memory) Rotate(context.Context) (int, error) { return 3, m.call("rotate") }

func (m *memory) Environments(_ context.Context, repo string) ([]tgr.Environment, error) {
	return nil, m.call("environments of " + repo)
}

func (m *memory) SetEnvironment(_ context.Context, e tgr.Environment) error {
	return m.call(fmt.Sprintf("environment %+v", e))
}

func (m *memory) RemoveEnvironment(_ context.Context, repo, name string) error {
	return m.call("no environment " + name + " of " + repo)
}

func (m *memory) Dispatch(_ context.Context, d Dispatch) ([]tgr.RunID, error) {
	return []tgr.RunID{9}, m.call("dispatch " + d.Repo + " " + d.Workflow + " " + d.Ref + " " + d.Inputs["a"])
}

func (m *memory) call(s string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls = append(m.calls, s)
	return m.fail
}

var _ interface {
	RunStore
	LogReader
	Controller
} = (*memory)(nil)

// at is a moment, n seconds after the tests' epoch.
func at(n int) time.Time { return time.Date(2026, 5, 4, 12, 0, n, 0, time.UTC) }

func exit(code int) *int { return &code }

// sampleRun is a public run that failed, and sampleJobs are its jobs.
func sampleRun() tgr.Run {
	return tgr.Run{ID: 7, Number: 3, Attempt: 1, Delivery: "d-7", WorkflowFile: ".github/workflows/ci.yml", WorkflowName: "CI", Title: "Mend the bridge",
		Event: tgr.Event{Name: "push", Ref: "refs/heads/main", SHA: "0123456789abcdef0123456789abcdef01234567", Actor: "ada",
			Repo: tgr.Repo{ID: 1, FullName: "acme/bridge", CloneURL: "https://example.test/acme/bridge.git", DefaultBranch: "main"}},
		Status: tgr.Completed, Conclusion: tgr.Failure, Created: at(0), Started: at(1), Finished: at(90), Plan: []byte(`{"version":1}`)}
}

func sampleJobs() []tgr.Job {
	return []tgr.Job{
		{ID: 70, Run: 7, Attempt: 1, Kind: tgr.WorkJob, Key: "build", Name: "build (1.26)", Total: 1, Status: tgr.Completed, Conclusion: tgr.Failure,
			Blame: tgr.BlameUser, Reason: "step 2 failed", Tries: 1, Machine: "m-1", Isolation: "qemu (tcg)", Created: at(0), Started: at(2), Finished: at(89),
			Steps: []tgr.Step{
				{Number: 1, Name: "Set up", Status: tgr.Completed, Conclusion: tgr.Success, Outcome: tgr.Success, Started: at(2), Finished: at(3)},
				{Number: 2, Name: "Test", Status: tgr.Completed, Conclusion: tgr.Failure, Outcome: tgr.Failure, ExitCode: exit(1), Started: at(3), Finished: at(88)},
			},
			Annotations: []tgr.Annotation{{Level: "error", Message: "it does not hold", File: "bridge.go", Line: 12, Step: 2}}},
		{ID: 71, Run: 7, Attempt: 1, Kind: tgr.WorkJob, Key: "deploy", Name: "deploy", Needs: []string{"build"}, Total: 1, Status: tgr.Completed,
			Conclusion: tgr.Skipped, Reason: "build failed", Created: at(0)},
	}
}

func sampleLog() []tgr.LogLine {
	return []tgr.LogLine{
		{Time: at(2), Step: 0, Text: "machine m-1"},
		{Time: at(2), Step: 1, Text: "setting up"},
		{Time: at(3), Step: 2, Text: "\x1b[31;1mFAIL\x1b[0m bridge"},
		{Time: at(4), Step: 2, Text: "##[error]exit status 1"},
	}
}

// fill puts the samples in a store.
func (m *memory) fill() *memory {
	m.setRun(sampleRun())
	for _, j := range sampleJobs() {
		m.setJob(j)
	}
	m.append(70, 1, sampleLog()...)
	m.closeLog(70, 1)
	return m
}

// site is a Server on a real socket.
type site struct {
	*memory
	server *Server
	url    string
	client *Client
	stop   func() error // ends Serve and returns its error
}

func newSite(t *testing.T, m *memory, change func(*Config)) *site {
	t.Helper()
	s := &site{memory: m}
	c := Config{Runs: m, Logs: m, Control: m, Changed: m.Changed, Version: "test", Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Poll: 50 * time.Millisecond}
	if change != nil {
		change(&c)
	}
	var err error
	if s.server, err = New(c); err != nil {
		t.Fatal(err)
	}
	s.serve(t, c.Token)
	return s
}

func (s *site) serve(t *testing.T, token string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.url = "http://" + l.Addr().String()
	if s.client, err = NewClient(s.url, token); err != nil {
		t.Fatal(err)
	}
	s.client.again = time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.server.Serve(ctx, l) }()
	s.stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Errorf("Serve: %v", err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
}

var errDisk = errors.New("disk /secret/path is on fire")
