package vmapi

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/vm"
)

// Every route is in the document, with its parameters, and nothing else is.
func TestDocumentRoutes(t *testing.T) {
	s := newSpec(t)
	got, want := map[string][]string{}, map[string][]string{}
	for path, item := range s.doc.Paths.Map() {
		for method, op := range item.Operations() {
			names := []string{}
			for _, p := range op.Parameters {
				names = append(names, p.Value.Name)
			}
			if op.Security != nil && len(*op.Security) == 0 {
				names = append(names, "(open)")
			}
			if op.Summary == "" || op.OperationID == "" {
				t.Errorf("%s %s has no summary or no operationId", method, path)
			}
			slices.Sort(names)
			got[method+" "+path] = names
		}
	}
	variable := regexp.MustCompile(`\{(\w+)\}`)
	for _, rt := range routeTable() {
		names := append([]string{}, rt.query...)
		for _, m := range variable.FindAllStringSubmatch(rt.path, -1) {
			names = append(names, m[1])
		}
		if rt.once {
			names = append(names, "Idempotency-Key")
		}
		if rt.open {
			names = append(names, "(open)")
		}
		slices.Sort(names)
		want[rt.method+" "+rt.path] = names
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("routes (-) and document (+) differ:\n%s", diff)
	}
}

// A walk over all calls, each of which is held against the document.
func TestWalk(t *testing.T) {
	r := newRigOn(t, func(p vm.Provider) vm.Provider { return &fancy{p} }, nil)
	h, err := r.c.Health(ctx(t))
	if err != nil || h.Status != "healthy" || !slices.Contains(h.Features, FeatureExec) {
		t.Fatalf("health %+v, %v", h, err)
	}
	r.spec.RoundTrip(must(http.NewRequest("GET", r.url+"/api/openapi.json", nil)))
	m := r.start()
	walkCommands(t, m)
	listen(t, m).Close()
	walkState(t, r, m.ID())
	code := "echo out; echo err >&2; exit 3"
	res, err := r.c.Execute(ctx(t), ExecuteRequest{Language: "bash", Code: code, VMID: m.ID(), WorkingDir: t.TempDir()})
	if err != nil || *res.ExitCode != 3 || res.Stdout != "out\n" || res.Stderr != "err\n" || res.Error != nil {
		t.Errorf("execute: %+v, %v", res, err)
	}
	hist, err := r.c.History(ctx(t), m.ID(), 10, true)
	if err != nil || len(hist.History) != 2 || hist.History[0].Command != code || *hist.History[0].ExitCode != 3 || hist.History[0].Stderr != "err\n" {
		t.Errorf("history of failures: %+v, %v", hist, err)
	}
	if hist, err = r.c.History(ctx(t), m.ID(), 1, false); err != nil || len(hist.History) != 1 || hist.Total < 3 {
		t.Errorf("history: %+v, %v", hist, err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	v, err := r.c.Get(ctx(t), m.ID(), 0)
	if err != nil || v.State != Gone || v.Status != "stopped" || v.Reason != "deleted by tester" || v.Session.State != vm.SessionTerminating {
		t.Errorf("after its end: %+v, %v", v, err)
	}
	for _, op := range operations(r.spec) {
		if !r.spec.seen[op] {
			t.Errorf("the walk did not see %s succeed", op)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func operations(s *spec) (ids []string) {
	for _, item := range s.doc.Paths.Map() {
		for _, op := range item.Operations() {
			ids = append(ids, op.OperationID)
		}
	}
	return ids
}

func walkCommands(t *testing.T, m *Machine) {
	t.Helper()
	dir := filepath.Join(m.VM().Place.Home, "walk")
	if err := m.Put(ctx(t), dir, must(tarOf("a", "text of a"))); err != nil {
		t.Fatal(err)
	}
	tree, err := m.Get(ctx(t), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	tr := tar.NewReader(tree)
	h, err := tr.Next()
	if err == nil && h.Name == "./" {
		h, err = tr.Next()
	}
	if err != nil || h.Name != "a" {
		t.Errorf("%+v, %v", h, err)
	}
	var out bytes.Buffer
	exit, err := m.Exec(ctx(t), guest.Cmd{Args: []string{"/bin/cat"}, Stdin: strings.NewReader("typed")}, &out)
	if err != nil || !exit.Success() || out.String() != "typed" {
		t.Errorf("%+v, %v, %q", exit, err, &out)
	}
	// A terminal, its size, and the end of its command.
	cancelled, cancel := context.WithCancel(ctx(t))
	shown := writerFunc(func(b []byte) (int, error) {
		if strings.Contains(string(b), "ready") {
			go func() {
				if err := m.Resize(ctx(t), "tty", guest.WindowSize{Rows: 7, Cols: 9}); err != nil {
					t.Error(err)
				}
				cancel()
			}()
		}
		return len(b), nil
	})
	_, err = m.Exec(cancelled, guest.Cmd{ID: "tty", Args: []string{"/bin/sh", "-c", "echo ready; sleep 1000"}, TTY: &guest.WindowSize{Rows: 1, Cols: 1}}, shown)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func walkState(t *testing.T, r *rig, id string) {
	t.Helper()
	s, err := r.c.Snapshot(ctx(t), id, SnapshotRequest{Name: "first", Description: "before the fall"})
	if err != nil || s.SnapshotID == "" || s.Description != "before the fall" {
		t.Fatalf("snapshot: %+v, %v", s, err)
	}
	if l, err := r.c.Snapshots(ctx(t), id); err != nil || len(l.Snapshots) != 1 || !cmp.Equal(l.Snapshots[0], s) {
		t.Errorf("snapshots: %+v, %v", l, err)
	}
	if back, err := r.c.Rollback(ctx(t), id, s.SnapshotID); err != nil || back.SnapshotID != s.SnapshotID || back.VMID != id {
		t.Errorf("rollback: %+v, %v", back, err)
	}
	v, err := r.c.Get(ctx(t), id, 0)
	if err != nil || v.Session.State != vm.SessionRolledBack || v.State != Leased {
		t.Errorf("after the rollback: %+v, %v", v, err)
	}
	if err := r.c.Pause(ctx(t), id); err != nil {
		t.Fatal(err)
	}
	if _, err := r.c.Execute(ctx(t), ExecuteRequest{Language: "bash", Code: "true", VMID: id}); status(err) != http.StatusConflict {
		t.Errorf("execute while paused: %v", err)
	}
	if err := r.c.Resume(ctx(t), id); err != nil {
		t.Fatal(err)
	}
	if v, err = r.c.Lease(ctx(t), id, time.Minute); err != nil || v.State != Leased || time.Until(*v.LeasedTo) > time.Minute {
		t.Errorf("lease: %+v, %v", v, err)
	}
	if err := r.c.Outcome(ctx(t), id, "completed"); err != nil {
		t.Error(err)
	}
	l, err := r.c.List(ctx(t))
	if err != nil || len(l.VMs) != 1 || l.Usage.CurrentVMs != 1 || l.User != "tester" || l.Usage.Sessions.Completed != 1 || l.Usage.Sessions.RolledBack != 1 {
		t.Errorf("list: %+v, %v", l, err)
	}
}

func status(err error) int {
	var e *Error
	if errors.As(err, &e) {
		return e.Status
	}
	return 0
}

// fancy gives machines without snapshots and pauses what the walk needs: the stream ends with a rollback, and the
// agent's process stands still.
type fancy struct{ vm.Provider }

func (f *fancy) Start(ctx context.Context, s vm.Spec) (vm.VM, error) {
	m, err := f.Provider.Start(ctx, s)
	if err != nil {
		return nil, err
	}
	return &fancyVM{VM: m}, nil
}

type fancyVM struct {
	vm.VM
	snapshots []vm.Snapshot
}

func (m *fancyVM) Home() string { return m.VM.(interface{ Home() string }).Home() }

func (m *fancyVM) Snapshot(_ context.Context, name string) (vm.Snapshot, error) {
	m.snapshots = append(m.snapshots, vm.Snapshot{ID: "snap-1", Name: name, Taken: time.Now().UTC().Truncate(time.Millisecond), Paused: time.Millisecond, Bytes: 1})
	return m.snapshots[0], nil
}

func (m *fancyVM) Snapshots() []vm.Snapshot { return m.snapshots }

func (m *fancyVM) Rollback(ctx context.Context, id string) error {
	if id != "snap-1" {
		return vm.ErrNoSnapshot
	}
	conn, err := m.VM.Dial(ctx) // which ends the stream that there is
	if err == nil {
		conn.Close()
	}
	return err
}

func (m *fancyVM) Pause(context.Context) error  { return m.signal(syscall.SIGSTOP) }
func (m *fancyVM) Resume(context.Context) error { return m.signal(syscall.SIGCONT) }

func (m *fancyVM) signal(s os.Signal) error {
	p, err := os.FindProcess(m.VM.(vm.Infoer).Info().PID)
	if err != nil {
		return err
	}
	return p.Signal(s)
}

// States: the table is every state with every event, all states are reached, and the drawing says the same.
func TestStates(t *testing.T) {
	const table = `
          made     answered  leased  returned  paused  resumed  stopped   freed  died
creating  booting  -         -       -         -       -        stopping  -      failed
booting   -        ready     -       -         -       -        stopping  -      failed
ready     -        -         leased  -         paused  -        stopping  -      failed
leased    -        -         leased  ready     paused  -        stopping  -      failed
paused    -        -         -       -         -       ready    stopping  -      failed
stopping  -        -         -       -         -       -        -         gone   -
gone      -        -         -       -         -       -        -         -      -
failed    -        -         -       -         -       -        -         -      -
`
	lines := strings.Split(strings.TrimSpace(table), "\n")
	events := strings.Fields(lines[0])
	for _, line := range lines[1:] {
		row := strings.Fields(line)
		for i, e := range events {
			to, ok := State(row[0]).after(event(e))
			if got := string(to); ok != (row[i+1] != "-") || ok && got != row[i+1] || !ok && got != row[0] {
				t.Errorf("%s, %s: %s (%t), want %s", row[0], e, got, ok, row[i+1])
			}
		}
	}
	page, err := os.ReadFile("../docs/vm-api.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(page), "## States")
	after, _, _ = strings.Cut(after, "\n## ")
	got, want := map[string]bool{}, map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^ +(\w+) --> (\w+): (\w+)$`).FindAllStringSubmatch(after, -1) {
		got[m[1]+" "+m[3]+" "+m[2]] = true
	}
	for _, tr := range transitions() {
		want[string(tr.from)+" "+string(tr.on)+" "+string(tr.to)] = true
	}
	if diff := cmp.Diff(slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(got))); diff != "" {
		t.Errorf("the table (-) and docs/vm-api.md (+) differ:\n%s", diff)
	}
}

// What makes no sense is refused, with a status and a reason, and changes nothing.
func TestRefusals(t *testing.T) {
	r := newRig(t, nil)
	m := r.start()
	at := "/api/vms/" + m.ID()
	for _, tt := range []struct {
		name, method, path, body string
		status                   int
		says                     string
	}{
		{"no such path", "GET", "/api/nothing", "", 404, "nothing at"},
		{"another method", "PATCH", "/api/vms", "", 405, "GET and POST"},
		{"no such machine", "GET", "/api/vms/vm-0", "", 404, "no machine"},
		{"a strange parameter", "GET", "/api/vms?x=1", "", 400, "no parameter"},
		{"a parameter twice", "GET", at + "?wait_seconds=1&wait_seconds=2", "", 400, "2 times"},
		{"a wait that is no number", "GET", at + "?wait_seconds=soon", "", 400, "whole number"},
		{"not JSON", "POST", "/api/vms", "{", 400, "not what is expected"},
		{"two values", "POST", "/api/vms", "{} {}", 400, "more after"},
		{"a field that is not known", "POST", "/api/vms", `{"disk":1}`, 400, "disk"},
		{"too many processors", "POST", "/api/vms", `{"vcpus":99}`, 400, "1 to 1"},
		{"too much memory", "POST", "/api/vms", `{"memory_mb":999999}`, 400, "128 to 1024"},
		{"a label that is not known", "POST", "/api/vms", `{"labels":["windows"]}`, 400, "windows"},
		{"a lease without end", "POST", at + "/lease", `{"seconds":99999999}`, 400, "86400"},
		{"a negative lease", "POST", at + "/lease", `{"seconds":-1}`, 400, "-1"},
		{"too large", "POST", "/api/vms", `{"name":"` + strings.Repeat("x", maxRequest) + `"}`, 413, "larger"},
		{"a long name", "POST", "/api/vms", `{"name":"` + strings.Repeat("x", 200) + `"}`, 400, "128"},
		{"no command", "POST", at + "/exec", `{}`, 400, "args"},
		{"two commands", "POST", at + "/exec", `{"args":["a"],"script":"b"}`, 400, "not both"},
		{"an id with a slash", "POST", at + "/exec", `{"args":["a"],"id":"a/b"}`, 400, "slash"},
		{"bytes that are not base64", "POST", at + "/exec", `{"args":[{"base64":"!"}]}`, 400, "base64"},
		{"standard error of a terminal", "POST", at + "/exec", `{"args":["a"],"split":true,"tty":{"rows":1,"cols":1}}`, 400, "terminal"},
		{"a command that does not run", "POST", at + "/exec/none/cancel", "", 404, "no command"},
		{"a relative path", "GET", at + "/files?path=etc", "", 400, "absolute"},
		{"no path", "PUT", at + "/files", "", 400, "absolute"},
		{"a path that is not there", "GET", at + "/files?path=/nonesuch", "", 404, "no such file"},
		{"a tar that is none", "PUT", at + "/files?path=/tmp/tgr-vmapi-none", strings.Repeat("garbage", 200), 422, ""},
		{"no snapshots here", "POST", at + "/snapshots", "", 501, "process"},
		{"no rollback here", "POST", at + "/rollback/x", "", 501, "process"},
		{"no pause here", "POST", at + "/pause", "", 501, "process"},
		{"a language that is not known", "POST", "/api/llm/execute", `{"language":"rust","code":"x"}`, 400, "bash, python or javascript"},
		{"no code", "POST", "/api/llm/execute", `{"language":"bash"}`, 400, "no code"},
		{"requirements", "POST", "/api/llm/execute", `{"language":"bash","code":"x","requirements":["y"]}`, 400, "requirements"},
		{"a time that is negative", "POST", "/api/llm/execute", `{"language":"bash","code":"x","timeout_ms":-1}`, 400, "timeout_ms"},
		{"a time without end", "POST", "/api/llm/execute", `{"language":"bash","code":"x","timeout_seconds":1e300}`, 400, "timeout_seconds"},
		{"a relative folder", "POST", "/api/llm/execute", `{"language":"bash","code":"x","working_dir":"y"}`, 400, "absolute"},
		{"execute where nothing is", "POST", "/api/llm/execute", `{"language":"bash","code":"x","vm_id":"vm-0"}`, 404, "no machine"},
		{"an outcome that is none", "POST", at + "/outcome", `{"outcome":"maybe"}`, 400, "maybe"},
		{"failures of what", "GET", at + "/history?failures_only=perhaps", "", 400, "perhaps"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, header, body := r.raw(tt.method, tt.path, tt.body)
			if code != tt.status || !strings.Contains(body, tt.says) || !strings.HasPrefix(body, `{"error":"`) {
				t.Errorf("%d %s; want %d and %q", code, cut(body, 300), tt.status, tt.says)
			}
			if header.Get("Content-Type") != "application/json" {
				t.Errorf("content type %q", header.Get("Content-Type"))
			}
		})
	}
	if l, err := r.c.List(ctx(t)); err != nil || l.Usage.CurrentVMs != 1 {
		t.Errorf("machines after all that: %+v, %v", l.Usage, err)
	}
}

func TestCapacity(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Max = 1 })
	m := r.start()
	code, header, body := r.raw("POST", "/api/vms", "")
	if code != 503 || header.Get("Retry-After") != "2" || !strings.Contains(body, "at capacity") {
		t.Errorf("%d, Retry-After %q, %s", code, header.Get("Retry-After"), body)
	}
	// The client waits for room, and gets it.
	second := make(chan error, 1)
	go func() {
		m, err := r.c.Start(ctx(t), CreateRequest{})
		if err == nil {
			err = m.Close()
		}
		second <- err
	}()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-second; err != nil {
		t.Error(err)
	}
}

// ended waits for the end of a machine.
func (r *rig) ended(v VM) VM {
	deadline := time.Now().Add(20 * time.Second)
	for !v.State.ended() && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond)
		v = must(r.c.Get(ctx(r.t), v.ID, 0))
	}
	return v
}

// A lease that is not renewed ends the machine, one that is does not, and so does idleness.
func TestLeases(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Idle = 1500 * time.Millisecond })
	gone := func(v VM, want string) {
		t.Helper()
		v = r.ended(v)
		if v.State != Gone || v.Reason != want {
			t.Errorf("%s, because %q; want it gone because %q", v.State, v.Reason, want)
		}
	}
	leased := must(r.c.Create(ctx(t), CreateRequest{LeaseSeconds: 1, WaitSeconds: 30}, ""))
	if leased.State != Leased {
		t.Fatalf("created with a lease: %s", leased.State)
	}
	gone(leased, "its lease was not renewed")
	idle := must(r.c.Create(ctx(t), CreateRequest{WaitSeconds: 30}, ""))
	gone(idle, "nothing ran for 1.5s")
	kept := must(r.c.Create(ctx(t), CreateRequest{LeaseSeconds: 60, WaitSeconds: 30}, ""))
	gone(must(r.c.Lease(ctx(t), kept.ID, 0)), "nothing ran for 1.5s")
}

// The same key makes one machine, whatever is lost on the way.
func TestIdempotency(t *testing.T) {
	r := newRig(t, nil)
	one := must(r.c.Create(ctx(t), CreateRequest{Name: "one"}, "key-1"))
	again := must(r.c.Create(ctx(t), CreateRequest{Name: "one"}, "key-1"))
	other := must(r.c.Create(ctx(t), CreateRequest{Name: "one"}, "key-2"))
	if one.ID != again.ID || one.ID == other.ID {
		t.Errorf("%s, again %s, with another key %s", one.ID, again.ID, other.ID)
	}
	if _, err := r.c.Create(ctx(t), CreateRequest{Name: "two"}, "key-1"); status(err) != 422 {
		t.Errorf("the same key for another request: %v", err)
	}
	if code, header, _ := r.raw("POST", "/api/vms", `{"name":"one"}`, "Idempotency-Key", "key-1"); code != 201 || header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("%d, %v", code, header)
	}
	if code, _, body := r.raw("POST", "/api/vms", "", "Idempotency-Key", "a key"); code != 400 {
		t.Errorf("a key with a space: %d %s", code, body)
	}
	// What failed may be tried again with the same key.
	bad := `{"language":"bash","code":"echo hi","vm_id":"vm-0"}`
	for range 2 {
		if code, header, _ := r.raw("POST", "/api/llm/execute", bad, "Idempotency-Key", "key-3"); code != 404 || header.Get("Idempotency-Replayed") != "" {
			t.Errorf("%d, %v", code, header)
		}
	}
	// Two at once do one thing.
	ids := make(chan string, 2)
	for range 2 {
		go func() { ids <- must(r.c.Create(ctx(t), CreateRequest{}, "key-4")).ID }()
	}
	if a, b := <-ids, <-ids; a != b {
		t.Errorf("at once: %s and %s", a, b)
	}
}

// brokenProvider makes no machines, or one that dies.
type brokenProvider struct {
	vm.Provider
	err  error
	slow bool
}

func (p brokenProvider) Start(ctx context.Context, s vm.Spec) (vm.VM, error) {
	if p.slow {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	return nil, p.err
}

func TestFailures(t *testing.T) {
	boom := &vm.BootError{ID: "x", Console: "Kernel panic - not syncing", Err: errors.New("it stopped")}
	r := newRigOn(t, func(vm.Provider) vm.Provider { return brokenProvider{err: boom} }, nil)
	v := must(r.c.Create(ctx(t), CreateRequest{WaitSeconds: 30}, ""))
	if v.State != Failed || v.Status != "failed" || !strings.Contains(v.Reason, "Kernel panic") || v.Session.State != vm.SessionTerminating {
		t.Errorf("%+v", v)
	}
	if _, err := r.c.Start(ctx(t), CreateRequest{}); err == nil || !strings.Contains(err.Error(), "Kernel panic") {
		t.Errorf("start: %v", err)
	}
	if l := must(r.c.List(ctx(t))); l.Usage.CurrentVMs != 0 || l.Usage.Sessions.Failed != 2 {
		t.Errorf("%+v", l.Usage)
	}

	slow := newRigOn(t, func(vm.Provider) vm.Provider { return brokenProvider{slow: true} }, func(c *Config) { c.BootWithin = 50 * time.Millisecond })
	v = must(slow.c.Create(ctx(t), CreateRequest{WaitSeconds: 30}, ""))
	if v.State != Failed || !strings.Contains(v.Reason, "not ready within") {
		t.Errorf("%+v", v)
	}
	hung := newRigOn(t, func(vm.Provider) vm.Provider { return brokenProvider{slow: true} }, nil)
	v = must(hung.c.Create(ctx(t), CreateRequest{}, ""))
	if v.State != Creating || v.Status != "Creating" {
		t.Errorf("%+v", v)
	}
	if _, err := hung.c.Execute(ctx(t), ExecuteRequest{Language: "bash", Code: "true", VMID: v.ID}); status(err) != 409 {
		t.Errorf("execute before it is there: %v", err)
	}
	if err := hung.c.Delete(ctx(t), v.ID, "failed"); err != nil {
		t.Fatal(err)
	}
	if v = must(hung.c.Get(ctx(t), v.ID, 0)); v.State != Gone {
		t.Errorf("deleted while it was being made: %+v", v)
	}
}

// A machine that dies says so, to whoever runs something in it and to whoever asks later.
func TestMachineDies(t *testing.T) {
	r := newRig(t, nil)
	m := r.start()
	_, err := m.Exec(ctx(t), guest.Cmd{Args: []string{"/bin/sh", "-c", "kill -9 $PPID; sleep 1000"}, Env: []string{"PATH=/usr/bin:/bin"}}, nil)
	if !errors.Is(err, guest.ErrLost) {
		t.Errorf("exec: %v, want ErrLost", err)
	}
	v := r.ended(must(r.c.Get(ctx(t), m.ID(), 0)))
	if v.State != Failed || v.Reason == "" {
		t.Errorf("%s: %q", v.State, v.Reason)
	}
	if err := m.Put(ctx(t), "/tmp/x", bytes.NewReader(nil)); status(err) != 409 {
		t.Errorf("put: %v", err)
	}
}

// Code that is larger than an argument may be, code that takes too long, code without a machine of its own.
func TestExecute(t *testing.T) {
	r := newRig(t, nil)
	m := r.start()
	long := "x='" + strings.Repeat("y", 200<<10) + "'\necho ${#x}"
	for _, tt := range []struct {
		name   string
		req    ExecuteRequest
		code   int
		stdout string
		says   string
	}{
		{"long code", ExecuteRequest{Language: "bash", Code: long}, 0, "204800\n", ""},
		{"python", ExecuteRequest{Language: "python", Code: "print(6*7)"}, 0, "42\n", ""},
		{"a time in ms", ExecuteRequest{Language: "bash", Code: "echo begun; sleep 1000", TimeoutMS: 300, TimeoutSeconds: 50}, 124, "begun\n", "ended after 300ms"},
		{"a time in seconds", ExecuteRequest{Language: "bash", Code: "sleep 1000", TimeoutSeconds: 0.2}, 124, "", "ended after 200ms"},
		{"killed", ExecuteRequest{Language: "bash", Code: "kill -9 $$"}, 137, "", ""},
		{"255 is the code's own", ExecuteRequest{Language: "bash", Code: "exit 255"}, 255, "", ""},
		{"a folder that is not there", ExecuteRequest{Language: "bash", Code: "true", WorkingDir: "/nonesuch"}, 126, "", "/nonesuch"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.req.VMID = m.ID()
			res, err := r.c.Execute(ctx(t), tt.req)
			if err != nil {
				t.Fatal(err)
			}
			said := ""
			if res.Error != nil {
				said = *res.Error
			}
			if *res.ExitCode != tt.code || res.Stdout != tt.stdout || (tt.says == "") != (said == "") || !strings.Contains(said, tt.says) {
				t.Errorf("%d, %q, %q; want %d, %q, %q", *res.ExitCode, res.Stdout, said, tt.code, tt.stdout, tt.says)
			}
		})
	}
	res, err := r.c.Execute(ctx(t), ExecuteRequest{Language: "bash", Code: "head -c 5000000 /dev/zero | tr '\\0' x", VMID: m.ID()})
	if err != nil || !res.Truncated || len(res.Stdout) != maxOutput {
		t.Errorf("a large output: %d bytes, truncated %t, %v", len(res.Stdout), res.Truncated, err)
	}
	res, err = r.c.Execute(ctx(t), ExecuteRequest{Language: "bash", Code: "echo alone"})
	if err != nil || res.Stdout != "alone\n" || res.VMID == m.ID() {
		t.Fatalf("without a machine: %+v, %v", res, err)
	}
	if v := must(r.c.Get(ctx(t), res.VMID, 0)); v.State != Gone {
		t.Errorf("its machine is %s", v.State)
	}
}

// A client that goes away takes its command with it.
func TestClientGoesAway(t *testing.T) {
	r := newRig(t, nil)
	m := r.start()
	mark := filepath.Join(t.TempDir(), "ended")
	gone, goAway := context.WithCancel(ctx(t))
	req := must(http.NewRequestWithContext(gone, "POST", r.url+"/api/vms/"+m.ID()+"/exec",
		strings.NewReader(`{"script":"trap 'echo > `+mark+`; exit' INT; echo ready; while :; do sleep 0.01; done","grace_ms":5000}`)))
	req.Header.Set("Authorization", "Bearer "+r.token)
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	seen := make([]byte, 0, 1<<10)
	for !bytes.Contains(seen, []byte(`"stdout"`)) {
		b := make([]byte, 256)
		n, err := answer.Body.Read(b)
		if seen = append(seen, b[:n]...); err != nil && err != io.EOF {
			t.Fatal(err)
		}
	}
	goAway()
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) {
		if _, err := os.Stat(mark); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("the command goes on without its client")
}
