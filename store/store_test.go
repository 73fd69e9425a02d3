package store_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/store"
	"github.com/terraphim/tgr/store/storetest"
)

// databases are those that the contract is tested on: each makes an empty one.
var databases = map[string]func(t testing.TB) store.Config{
	"sqlite": func(t testing.TB) store.Config {
		return store.Config{Path: filepath.Join(t.TempDir(), "tgr.db")}
	},
	"postgres": func(t testing.TB) store.Config {
		s, err := postgres()
		if errors.Is(err, storetest.ErrNone) {
			t.Skip("NOT TESTED:", err)
		} else if err != nil {
			t.Fatal(err)
		}
		url, err := s.Database(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return store.Config{URL: url}
	},
}

// postgres is the server of all tests, which TestMain stops if there is one.
var postgres = sync.OnceValues(func() (*storetest.Server, error) {
	s, err := storetest.Start(context.Background())
	if err == nil {
		stopPostgres = s.Stop
	}
	return s, err
})

var stopPostgres = func() error { return nil }

func TestMain(m *testing.M) {
	if err := flag.Set("rapid.checks", "40"); err != nil {
		panic(err)
	}
	code := m.Run()
	if err := stopPostgres(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// open opens the database of cfg for the length of the test.
func open(t testing.TB, cfg store.Config) *store.Store {
	t.Helper()
	s, err := store.Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// each runs a test of the contract on every database.
func each(t *testing.T, fn func(t *testing.T, e *env)) {
	eachFresh(t, func(t *testing.T, e *env) {
		t.Parallel()
		e.open(store.Config{Reports: e.hook, Follow: e.follow})
		fn(t, e)
	})
}

// eachFresh runs a test on every database, which it opens by itself.
func eachFresh(t *testing.T, fn func(t *testing.T, e *env)) {
	for name, fresh := range databases {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			e.fresh, e.where = fresh, fresh(t)
			fn(t, e)
		})
	}
}

// open opens the test's database, with what cfg says of the rest.
func (e *env) open(cfg store.Config) {
	e.t.Helper()
	cfg.Path, cfg.URL, cfg.Now = e.where.Path, e.where.URL, e.clock.now
	e.Store = open(e.t, cfg)
}

// env is a store with a clock that stands still and a record of what was reported.
type env struct {
	*store.Store
	t     testing.TB
	fresh func(testing.TB) store.Config // makes another database of the kind
	where store.Config                  // the database
	clock *clock
	ctx   context.Context
	hooks func(run tgr.Run, jobs []tgr.Job) []store.Outgoing // nil: reports nothing

	follows func(run tgr.Run, action string, followers []tgr.Follower) (tgr.Event, bool) // nil: nothing is followed
}

func newEnv(t testing.TB) *env {
	return &env{t: t, ctx: context.Background(), clock: &clock{at: time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)}}
}

func (e *env) hook(run tgr.Run, jobs []tgr.Job) []store.Outgoing {
	if e.hooks == nil {
		return nil
	}
	return e.hooks(run, jobs)
}

func (e *env) follow(run tgr.Run, action string, followers []tgr.Follower) (tgr.Event, bool) {
	if e.follows == nil {
		return tgr.Event{}, false
	}
	return e.follows(run, action, followers)
}

type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.at }

func (c *clock) add(d time.Duration) { c.mu.Lock(); defer c.mu.Unlock(); c.at = c.at.Add(d) }

func delivery(id string) tgr.Delivery {
	return tgr.Delivery{ID: tgr.DeliveryID(id), BodyHash: "hash of " + id, Event: tgr.Event{
		Name: "push", Ref: "refs/heads/main", SHA: "0123456789012345678901234567890123456789", Actor: "ada",
		Repo: tgr.Repo{ID: 7, FullName: "ada/engine"}, Payload: json.RawMessage(`{"id":"` + id + `"}`),
	}}
}

func (e *env) must(err error) {
	e.t.Helper()
	if err != nil {
		e.t.Fatal(err)
	}
}

func (e *env) code(err error, want tgr.Code) {
	e.t.Helper()
	if got := tgr.CodeOf(err); got != want {
		e.t.Fatalf("error %v has code %q; want %q", err, got, want)
	}
}

func (e *env) accept(id string) tgr.RunID {
	e.t.Helper()
	runs, fresh, err := e.Accept(e.ctx, delivery(id))
	e.must(err)
	if !fresh || len(runs) != 1 {
		e.t.Fatalf("Accept(%s) = %v, %v; want one fresh run", id, runs, fresh)
	}
	return runs[0]
}

func (e *env) claim(kinds ...tgr.JobKind) *store.Lease {
	e.t.Helper()
	l, err := e.Claim(e.ctx, store.ClaimRequest{Owner: "node-1", Lease: time.Minute, Kinds: kinds})
	e.must(err)
	return l
}

func (e *env) nothing() {
	e.t.Helper()
	if l, err := e.Claim(e.ctx, store.ClaimRequest{Owner: "node-1", Lease: time.Minute}); !errors.Is(err, store.ErrNothing) {
		e.t.Fatalf("Claim = %+v, %v; want ErrNothing", l, err)
	}
}

// planned accepts a delivery and plans one workflow of the jobs given as "key" or "key needs".
func (e *env) planned(id string, jobs ...tgr.Job) tgr.RunID {
	e.t.Helper()
	e.accept(id)
	l := e.claim(tgr.PlanJob)
	runs, err := e.Planned(e.ctx, l.Job.ID, l.Token, store.Planned{Runs: []store.PlannedRun{{
		WorkflowFile: ".github/workflows/ci.yml", WorkflowName: "CI", Title: "a title", Plan: []byte(`{"version":1}`), Jobs: jobs,
	}}})
	e.must(err)
	return runs[0]
}

func work(key string, needs ...string) tgr.Job { return tgr.Job{Key: key, Name: key, Needs: needs} }

// byKey finds the jobs of a key.
func byKey(jobs []tgr.Job, key string) []tgr.Job {
	return slices.DeleteFunc(slices.Clone(jobs), func(j tgr.Job) bool { return j.Key != key })
}

// expand makes n instances of the pending job key.
func (e *env) expand(run tgr.RunID, key string, n, parallel int) {
	e.t.Helper()
	e.must(e.Settle(e.ctx, run, func(_ tgr.Run, jobs []tgr.Job) (store.Change, error) {
		x := store.Expansion{MaxParallel: parallel}
		for i := range n {
			x.Jobs = append(x.Jobs, tgr.Job{Name: fmt.Sprintf("%s (%d)", key, i), Index: i, Total: n, Instance: json.RawMessage(fmt.Sprintf(`{"index":%d}`, i)), Labels: []string{"linux"}})
		}
		return store.Change{Expand: map[tgr.JobID]store.Expansion{byKey(jobs, key)[0].ID: x}}, nil
	}))
}

func (e *env) finish(l *store.Lease, c tgr.Conclusion) {
	e.t.Helper()
	e.must(e.Finish(e.ctx, l.Job.ID, l.Token, store.JobResult{Conclusion: c, Outputs: map[string]string{"from": l.Job.Name}}))
}

// cancelAll asks twice, which leaves nothing pending.
func (e *env) cancelAll(run tgr.RunID) {
	e.t.Helper()
	for range 2 {
		if !must(e.Run(e.ctx, run)).Status.Done() {
			e.must(e.CancelRun(e.ctx, run, 0, "", "ada"))
		}
	}
}

// shape is what a run and its jobs look like.
func (e *env) shape(run tgr.RunID) []string {
	e.t.Helper()
	r, err := e.Run(e.ctx, run)
	e.must(err)
	jobs, err := e.Jobs(e.ctx, run, 0)
	e.must(err)
	out := []string{fmt.Sprintf("run #%d.%d: %s", r.Number, r.Attempt, tgr.Outcome{Status: r.Status, Conclusion: r.Conclusion})}
	for _, j := range jobs {
		out = append(out, fmt.Sprintf("%s: %s", j.Name, tgr.Outcome{Status: j.Status, Conclusion: j.Conclusion}))
	}
	return out
}

func (e *env) looks(run tgr.RunID, want ...string) {
	e.t.Helper()
	if d := cmp.Diff(want, e.shape(run)); d != "" {
		e.t.Fatalf("run %d (-want +got):\n%s", run, d)
	}
}

func TestOpen(t *testing.T) {
	ctx := context.Background()
	for _, path := range []string{"", ":memory:", "file::memory:?x"} {
		if _, err := store.Open(ctx, store.Config{Path: path}); tgr.CodeOf(err) != tgr.Invalid {
			t.Errorf("Open(%q) = %v; want it refused", path, err)
		}
	}
	path := filepath.Join(t.TempDir(), "new folder", "a ?#%.db")
	s, err := store.Open(ctx, store.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Ping(ctx); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]os.FileMode{filepath.Dir(path): 0o700, path: 0o600, path + "-wal": 0o600} {
		if fi, err := os.Stat(p); err != nil || fi.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v; want %v", p, fi.Mode().Perm(), err, want)
		}
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatalf("closing twice: %v", err)
	}
	if err := s.Ping(ctx); tgr.CodeOf(err) != tgr.Unavailable {
		t.Errorf("Ping of a closed store = %v; want unavailable", err)
	}
	if s, err = store.Open(ctx, store.Config{Path: path}); err != nil {
		t.Fatalf("opening again: %v", err)
	}
	s.Close()
}

func TestOpenRefusesWhatIsNotOurs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	if err := os.WriteFile(path, []byte("this is no database, and was never one; it is text"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open(context.Background(), store.Config{Path: path}); err == nil {
		t.Fatal("a text file was opened as a database")
	}
}

func TestOpenRefusesANewerSchema(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	open(t, store.Config{Path: path})
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec("INSERT INTO goose_db_version (version_id, is_applied) VALUES (99, 1)"); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open(context.Background(), store.Config{Path: path}); tgr.CodeOf(err) != tgr.Conflict {
		t.Fatalf("Open = %v; want a newer schema refused", err)
	}
}

func TestAccept(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		run := e.accept("one")
		got, err := e.Run(e.ctx, run)
		e.must(err)
		d := delivery("one")
		want := tgr.Run{ID: run, Attempt: 1, Delivery: "one", Event: d.Event, Status: tgr.Queued, Created: e.clock.now()}
		if d := cmp.Diff(want, got); d != "" {
			t.Fatalf("run (-want +got):\n%s", d)
		}
		plan, err := e.PlanJob(e.ctx, run)
		e.must(err)
		if plan.Kind != tgr.PlanJob || plan.Status != tgr.Queued {
			t.Fatalf("plan job = %+v", plan)
		}
		for name, d := range map[string]tgr.Delivery{
			"same id":                 delivery("one"),
			"same id, another body":   {ID: "one", BodyHash: "other", Event: d.Event},
			"same body under another": {ID: "two", BodyHash: d.BodyHash, Event: d.Event},
		} {
			if runs, fresh, err := e.Accept(e.ctx, d); err != nil || fresh || !slices.Equal(runs, []tgr.RunID{run}) {
				t.Errorf("%s: Accept = %v, %v, %v; want the first's run", name, runs, fresh, err)
			}
		}
		for _, id := range []tgr.DeliveryID{"three", "four"} {
			if _, fresh, err := e.Accept(e.ctx, tgr.Delivery{ID: id, Event: d.Event}); err != nil || !fresh {
				t.Errorf("a delivery without a hash is a replay: %v", err)
			}
		}
		_, _, err = e.Accept(e.ctx, tgr.Delivery{})
		e.code(err, tgr.Invalid)
		list, err := e.Deliveries(e.ctx, 2)
		e.must(err)
		if len(list) != 2 || list[0].ID != "four" || list[1].ID != "three" || len(list[0].Runs) != 1 {
			t.Errorf("Deliveries = %+v", list)
		}
		back, err := e.Delivery(e.ctx, "one")
		e.must(err)
		d.Received = e.clock.now()
		if diff := cmp.Diff(d, back); diff != "" {
			t.Errorf("Delivery (-want +got):\n%s", diff)
		}
		_, err = e.Delivery(e.ctx, "none")
		e.code(err, tgr.NotFound)
	})
}

// Of many simultaneous deliveries of the same thing exactly one is fresh, and all name its run.
func TestAcceptRace(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		const n = 64
		var wg sync.WaitGroup
		var mu sync.Mutex
		fresh, runs := 0, map[tgr.RunID]int{}
		for i := range n {
			wg.Go(func() {
				d := delivery(fmt.Sprint("race ", i))
				d.BodyHash = fmt.Sprint("body ", i%4)
				ids, ok, err := e.Accept(e.ctx, d)
				mu.Lock()
				defer mu.Unlock()
				if err != nil || len(ids) != 1 {
					t.Errorf("Accept = %v, %v", ids, err)
					return
				}
				runs[ids[0]]++
				if ok {
					fresh++
				}
			})
		}
		wg.Wait()
		if fresh != 4 || len(runs) != 4 {
			t.Fatalf("%d fresh deliveries and runs %v; want 4 of each", fresh, runs)
		}
	})
}

func TestPlanned(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		first := e.planned("before", work("a"))
		e.looks(first, "run #1.1: queued", "a: pending")

		accepted := e.accept("many")
		l := e.claim(tgr.PlanJob)
		if l.Run.ID != accepted || string(l.Run.Event.Payload) != `{"id":"many"}` || l.Job.Tries != 1 {
			t.Fatalf("lease = %+v", l)
		}
		p := store.Planned{Runs: []store.PlannedRun{
			{WorkflowFile: ".github/workflows/ci.yml", WorkflowName: "CI", Plan: []byte("{}"), Jobs: []tgr.Job{work("a"), work("b", "a")}},
			{WorkflowFile: ".github/workflows/bad.yml", Conclusion: tgr.StartupFailure, Reason: "bad.yml:3:1: no jobs"},
		}, Reports: []store.Outgoing{{Key: "k", Body: []byte("b")}}}
		_, err := e.Planned(e.ctx, l.Job.ID, "stale", p)
		e.code(err, tgr.Conflict)
		for name, bad := range map[string]store.PlannedRun{
			"no file": {Jobs: []tgr.Job{work("a")}}, "no jobs": {WorkflowFile: "f"}, "both": {WorkflowFile: "f", Jobs: []tgr.Job{work("a")}, Conclusion: tgr.Skipped},
			"a key twice": {WorkflowFile: "f", Jobs: []tgr.Job{work("a"), work("a")}}, "an unknown need": {WorkflowFile: "f", Jobs: []tgr.Job{work("a", "x")}},
		} {
			if _, err := e.Planned(e.ctx, l.Job.ID, l.Token, store.Planned{Runs: []store.PlannedRun{bad}}); tgr.CodeOf(err) != tgr.Invalid {
				t.Errorf("%s: %v; want it refused", name, err)
			}
		}
		runs, err := e.Planned(e.ctx, l.Job.ID, l.Token, p)
		e.must(err)
		if len(runs) != 2 || runs[0] != accepted {
			t.Fatalf("Planned = %v; want the first to be %d", runs, accepted)
		}
		e.looks(runs[0], "run #2.1: queued", "a: pending", "b: pending")
		e.looks(runs[1], "run #1.1: completed (startup_failure)")
		_, err = e.Planned(e.ctx, l.Job.ID, l.Token, p)
		e.code(err, tgr.Conflict)
		again, fresh, err := e.Accept(e.ctx, delivery("many"))
		if err != nil || fresh || !slices.Equal(again, runs) {
			t.Errorf("a replay gets %v, %v, %v; want %v", again, fresh, err, runs)
		}
		if open, err := e.Unsettled(e.ctx); err != nil || !slices.Equal(open, []tgr.RunID{first, accepted}) {
			t.Errorf("Unsettled = %v, %v", open, err)
		}
		if shared, err := e.PlanJob(e.ctx, runs[1]); err != nil || shared.ID != l.Job.ID {
			t.Errorf("the second run's plan job = %+v, %v", shared, err)
		}
		if due, err := e.NextReports(e.ctx, e.clock.now(), 10); err != nil || len(due) != 1 {
			t.Errorf("reports = %v, %v", due, err)
		}
	})
}

func TestPlanningEnds(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		none := e.accept("none")
		l := e.claim(tgr.PlanJob)
		_, err := e.Planned(e.ctx, l.Job.ID, l.Token, store.Planned{Reason: "no workflow listens to push"})
		e.must(err)
		e.looks(none, "run #0.1: completed (skipped)")

		bad := e.accept("bad")
		l = e.claim(tgr.PlanJob)
		e.must(e.Finish(e.ctx, l.Job.ID, l.Token, store.JobResult{Conclusion: tgr.StartupFailure, Blame: tgr.BlameOurs, Reason: "no such commit"}))
		e.looks(bad, "run #0.1: completed (startup_failure)")
		if r, _ := e.Run(e.ctx, bad); r.Reason != "no such commit" || r.Finished.IsZero() {
			t.Errorf("run = %+v", r)
		}
		attempt, err := e.Rerun(e.ctx, bad, store.Again{})
		e.must(err)
		l = e.claim(tgr.PlanJob)
		if attempt != 2 || l.Run.ID != bad || l.Job.Attempt != 2 {
			t.Fatalf("the run is planned again as %+v", l.Job)
		}
		_, err = e.Planned(e.ctx, l.Job.ID, l.Token, store.Planned{Runs: []store.PlannedRun{{WorkflowFile: "f", Jobs: []tgr.Job{work("a")}}}})
		e.must(err)
		e.looks(bad, "run #1.2: queued", "a: pending")

		stop := e.accept("stop")
		e.must(e.CancelRun(e.ctx, stop, 0, "", "ada"))
		e.looks(stop, "run #0.1: completed (cancelled)")
		e.nothing()

		running := e.accept("running")
		l = e.claim()
		e.must(e.CancelRun(e.ctx, running, 0, "", "ada"))
		_, err = e.Planned(e.ctx, l.Job.ID, l.Token, store.Planned{})
		e.code(err, tgr.Conflict)
		e.finish(l, tgr.Cancelled)
		e.looks(running, "run #0.1: completed (cancelled)")
	})
}

func TestLifeOfARun(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		run := e.planned("d", work("build"), work("test", "build"), work("never", "build"))
		e.nothing()
		e.expand(run, "build", 1, 0)
		e.looks(run, "run #1.1: queued", "test: pending", "never: pending", "build (0): queued")
		l := e.claim()
		if string(l.Job.Instance) != `{"index":0}` || !slices.Equal(l.Job.Labels, []string{"linux"}) || string(l.Run.Plan) != `{"version":1}` {
			t.Fatalf("lease = %+v", l)
		}
		e.looks(run, "run #1.1: in_progress", "test: pending", "never: pending", "build (0): in_progress")
		e.must(e.SetMachine(e.ctx, l.Job.ID, l.Token, "vm-1", "process"))
		zero := 0
		steps := []tgr.Step{{Number: 1, Name: "one", Status: tgr.InProgress}, {Number: 2, Name: "two", Status: tgr.Pending}}
		e.must(e.UpdateSteps(e.ctx, l.Job.ID, l.Token, steps))
		done := []tgr.Step{
			{Number: 1, Name: "one", Status: tgr.Completed, Conclusion: tgr.Success, Outcome: tgr.Success, ExitCode: &zero},
			{Number: 2, Name: "two", Status: tgr.Completed, Conclusion: tgr.Skipped, Outcome: tgr.Skipped},
		}
		res := store.JobResult{Conclusion: tgr.Success, Outputs: map[string]string{"o": "1"}, Steps: done, Annotations: []tgr.Annotation{{Level: "notice", Message: "m"}}}
		e.clock.add(time.Second)
		e.must(e.Finish(e.ctx, l.Job.ID, l.Token, res))
		got, err := e.Job(e.ctx, l.Job.ID)
		e.must(err)
		want := l.Job
		want.Status, want.Conclusion, want.Finished = tgr.Completed, tgr.Success, e.clock.now()
		want.Machine, want.Isolation, want.Outputs, want.Steps, want.Annotations = "vm-1", "process", res.Outputs, done, res.Annotations
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("job (-want +got):\n%s", d)
		}
		e.code(e.Finish(e.ctx, l.Job.ID, l.Token, res), tgr.Conflict)
		e.code(e.UpdateSteps(e.ctx, l.Job.ID, l.Token, done), tgr.Conflict)

		e.must(e.Settle(e.ctx, run, func(_ tgr.Run, jobs []tgr.Job) (store.Change, error) {
			return store.Change{
				Skip:    map[tgr.JobID]string{byKey(jobs, "never")[0].ID: "its condition is false"},
				Queue:   map[tgr.JobID]time.Time{byKey(jobs, "test")[0].ID: {}},
				Reports: []store.Outgoing{{Key: "check", Body: []byte("x")}},
			}, nil
		}))
		e.finish(e.claim(), tgr.Failure)
		e.looks(run, "run #1.1: completed (failure)", "test: completed (failure)", "never: completed (skipped)", "build (0): completed (success)")
		r, err := e.Run(e.ctx, run)
		e.must(err)
		if r.Started.IsZero() || !r.Finished.Equal(e.clock.now()) {
			t.Errorf("started %v, finished %v", r.Started, r.Finished)
		}
		err = e.Settle(e.ctx, run, func(tgr.Run, []tgr.Job) (store.Change, error) { return store.Change{}, errors.New("called") })
		e.must(err)
	})
}

func TestClaimHonoursMaxParallel(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		run := e.planned("d", work("m"), work("free"))
		e.expand(run, "m", 5, 2)
		e.expand(run, "free", 1, 0)
		if jobs := must(e.Jobs(e.ctx, run, 0)); byKey(jobs, "m")[4].MaxParallel != 2 || byKey(jobs, "free")[0].MaxParallel != 0 {
			t.Errorf("the limit is not read back: %+v", jobs) // dispatch begins calls by it
		}
		a, b := e.claim(), e.claim()
		if c := e.claim(); a.Job.Key != "m" || b.Job.Key != "m" || c.Job.Key != "free" {
			t.Fatalf("claimed %s, %s, %s; want m, m, free", a.Job.Key, b.Job.Key, c.Job.Key)
		}
		e.nothing()
		e.finish(a, tgr.Success)
		if c := e.claim(); c.Job.Name != "m (2)" {
			t.Fatalf("claimed %s; want m (2)", c.Job.Name)
		}
		e.nothing()
		other := e.planned("other", work("m"))
		e.expand(other, "m", 2, 2)
		if c := e.claim(); c.Run.ID != other {
			t.Fatalf("the limit of one run holds up another: claimed %+v", c.Job)
		}
	})
}

func TestLeases(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		run := e.planned("d", work("a"))
		e.expand(run, "a", 1, 0)
		stale := e.claim()
		e.clock.add(50 * time.Second)
		_, _, err := e.Beat(e.ctx, stale.Job.ID, stale.Token, time.Minute)
		e.must(err)
		e.clock.add(50 * time.Second)
		if gone, err := e.Expire(e.ctx); err != nil || len(gone) != 0 {
			t.Fatalf("Expire = %v, %v; want none: the lease was extended", gone, err)
		}
		e.clock.add(11 * time.Second)
		gone, err := e.Expire(e.ctx)
		if err != nil || len(gone) != 1 || gone[0].Status != tgr.Queued || gone[0].Reason == "" {
			t.Fatalf("Expire = %+v, %v; want it queued again, with the reason", gone, err)
		}
		_, _, err = e.Beat(e.ctx, stale.Job.ID, stale.Token, time.Minute)
		e.code(err, tgr.Conflict)
		e.clock.add(time.Second)
		second := e.claim()
		if second.Job.ID != stale.Job.ID || second.Token == stale.Token || second.Job.Tries != 2 {
			t.Fatalf("second try = %+v", second)
		}
		e.code(e.Finish(e.ctx, stale.Job.ID, stale.Token, store.JobResult{Conclusion: tgr.Success}), tgr.Conflict)
		_, err = e.Release(e.ctx, stale.Job.ID, stale.Token, "late", false)
		e.code(err, tgr.Conflict)
		if back, err := e.Release(e.ctx, second.Job.ID, second.Token, "the machine did not boot", false); err != nil || !back {
			t.Fatalf("Release = %v, %v; want it back in the queue", back, err)
		}
		e.clock.add(2 * time.Second)
		third := e.claim()
		e.must(e.UpdateSteps(e.ctx, third.Job.ID, third.Token, []tgr.Step{{Number: 1, Status: tgr.InProgress}, {Number: 2, Status: tgr.Pending}}))
		if gone, err := e.OwnerGone(e.ctx, "someone else"); err != nil || len(gone) != 0 {
			t.Fatalf("OwnerGone of another = %v, %v", gone, err)
		}
		gone, err = e.OwnerGone(e.ctx, "node-1")
		if err != nil || len(gone) != 1 || gone[0].Conclusion != tgr.Failure || gone[0].Blame != tgr.BlameOurs {
			t.Fatalf("OwnerGone = %+v, %v; want a failure of ours after %d tries", gone, err, store.MaxTries)
		}
		for _, s := range gone[0].Steps {
			if s.Status != tgr.Completed || s.Conclusion == "" {
				t.Errorf("step %+v of a completed job is not closed", s)
			}
		}
		e.looks(run, "run #1.1: completed (failure)", "a (0): completed (failure)")
	})
}

// However often the server is stopped in good order, a job keeps its tries, and does not wait.
func TestExcusedTriesDoNotCount(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		run := e.planned("d", work("a"))
		e.expand(run, "a", 1, 0)
		for i := range 7 {
			l := e.claim()
			if back, err := e.Release(e.ctx, l.Job.ID, l.Token, "the server was stopped", true); err != nil || !back {
				t.Fatalf("stop %d: %v, %v", i+1, back, err)
			}
		}
		for i := range store.MaxTries {
			l := e.claim()
			if l.Job.Excused != 7 || l.Job.Tries != 8+i {
				t.Fatalf("try %+v", l.Job)
			}
			back, err := e.Release(e.ctx, l.Job.ID, l.Token, "no boot", false)
			if e.must(err); back != (i+1 < store.MaxTries) {
				t.Fatalf("try %d goes back: %t", i+1, back)
			}
			e.clock.add(time.Minute)
		}
		e.looks(run, "run #1.1: completed (failure)", "a (0): completed (failure)")
	})
}

func TestCancel(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		run := e.planned("d", work("a"), work("b"), work("c", "a"))
		e.expand(run, "a", 1, 0)
		e.expand(run, "b", 2, 0)
		a := e.claim()
		b, err := e.Jobs(e.ctx, run, 0)
		e.must(err)
		e.must(e.CancelRun(e.ctx, run, b[2].ID, "not needed", "ada"))
		e.looks(run, "run #1.1: in_progress", "c: pending", "a (0): in_progress", "b (0): completed (cancelled)", "b (1): queued")
		e.code(e.CancelRun(e.ctx, run, b[2].ID, "", "ada"), tgr.Conflict)
		e.code(e.CancelRun(e.ctx, run, 9999, "", "ada"), tgr.NotFound)
		e.must(e.CancelRun(e.ctx, run, 0, "superseded", "run 8"))
		e.looks(run, "run #1.1: in_progress", "c: pending", "a (0): in_progress", "b (0): completed (cancelled)", "b (1): queued")
		e.must(e.Settle(e.ctx, run, func(r tgr.Run, jobs []tgr.Job) (store.Change, error) { // all but c, which has if: always()
			return store.Change{Cancel: map[tgr.JobID]string{a.Job.ID: r.CancelReason, b[3].ID: r.CancelReason}}, nil
		}))
		e.looks(run, "run #1.1: in_progress", "c: pending", "a (0): in_progress", "b (0): completed (cancelled)", "b (1): completed (cancelled)")
		e.must(e.CancelRun(e.ctx, run, 0, "", "ada")) // once more: that too
		e.looks(run, "run #1.1: in_progress", "c: completed (cancelled)", "a (0): in_progress", "b (0): completed (cancelled)", "b (1): completed (cancelled)")
		cancel, why, err := e.Beat(e.ctx, a.Job.ID, a.Token, time.Minute)
		if err != nil || !cancel || why != "cancelled by ada" {
			t.Fatalf("Beat = %v, %q, %v", cancel, why, err)
		}
		if back, err := e.Release(e.ctx, a.Job.ID, a.Token, "shutting down", false); err != nil || back {
			t.Fatalf("Release of a job to be cancelled = %v, %v", back, err)
		}
		r, err := e.Run(e.ctx, run)
		e.must(err)
		if r.Conclusion != tgr.Cancelled || r.Reason != "cancelled by run 8: superseded" {
			t.Fatalf("run = %s (%s)", r.Conclusion, r.Reason)
		}
		e.code(e.CancelRun(e.ctx, run, 0, "", "ada"), tgr.Conflict)
		e.code(e.CancelRun(e.ctx, 9999, 0, "", "ada"), tgr.NotFound)
	})
}

// An event whose planning fails for a fault of ours is planned again, later and later, for minutes.
func TestPlanningIsRetried(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		run, began := e.accept("d"), e.clock.now()
		for tries, back := 1, true; back; tries++ {
			l := e.claim()
			if l.Job.Tries != tries {
				t.Fatalf("try %d, want %d", l.Job.Tries, tries)
			}
			var err error
			back, err = e.Release(e.ctx, l.Job.ID, l.Token, "GitHub does not answer", false)
			e.must(err)
			if back {
				e.nothing()
				e.clock.add(min(time.Second<<(tries-1), 2*time.Minute))
			}
		}
		if took := e.clock.now().Sub(began); took < 5*time.Minute || took > 10*time.Minute {
			t.Errorf("given up after %s", took)
		}
		r := must(e.Run(e.ctx, run))
		if r.Conclusion != tgr.Failure || r.Reason != "GitHub does not answer; given up after 10 tries" {
			t.Errorf("%s: %s", r.Conclusion, r.Reason)
		}
	})
}

func TestSettleRefuses(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		run := e.planned("d", work("a"), work("b"))
		jobs, err := e.Jobs(e.ctx, run, 0)
		e.must(err)
		a, b := jobs[0].ID, jobs[1].ID
		boom := errors.New("no")
		for name, tc := range map[string]struct {
			change store.Change
			err    error
			code   tgr.Code
		}{
			"an error of the function":  {err: boom, code: tgr.Internal},
			"a job in two ways":         {change: store.Change{Skip: map[tgr.JobID]string{a: ""}, Cancel: map[tgr.JobID]string{a: ""}}, code: tgr.Invalid},
			"a job of no run":           {change: store.Change{Skip: map[tgr.JobID]string{b: "", 999: ""}}, code: tgr.Invalid},
			"an expansion into nothing": {change: store.Change{Skip: map[tgr.JobID]string{b: ""}, Expand: map[tgr.JobID]store.Expansion{a: {}}}, code: tgr.Conflict},
		} {
			err := e.Settle(e.ctx, run, func(tgr.Run, []tgr.Job) (store.Change, error) { return tc.change, tc.err })
			if tgr.CodeOf(err) != tc.code {
				t.Errorf("%s: %v; want %s", name, err, tc.code)
			}
		}
		if err := e.Settle(e.ctx, run, func(tgr.Run, []tgr.Job) (store.Change, error) { panic("oh") }); tgr.CodeOf(err) != tgr.Internal {
			t.Errorf("a panic: %v", err)
		}
		e.looks(run, "run #1.1: queued", "a: pending", "b: pending")
		e.must(e.Settle(e.ctx, run, func(tgr.Run, []tgr.Job) (store.Change, error) {
			return store.Change{End: map[tgr.JobID]store.JobResult{a: {Conclusion: tgr.StartupFailure, Blame: tgr.BlameWorkflow, Reason: "ci.yml:4:3: no such context"}}, Expand: map[tgr.JobID]store.Expansion{
				b: {Jobs: []tgr.Job{{Name: "b", Total: 1, Status: tgr.Pending, Reason: "waits for its group"}}}}}, nil
		}))
		e.looks(run, "run #1.1: in_progress", "a: completed (startup_failure)", "b: pending")
	})
}

func TestRerun(t *testing.T) {
	setup := func(e *env) tgr.RunID {
		run := e.planned("d", work("build"), work("lint"), work("test", "build"), work("ship", "test"))
		e.expand(run, "build", 2, 1)
		e.expand(run, "lint", 1, 0)
		e.finish(e.claim(), tgr.Success)
		e.finish(e.claim(), tgr.Failure)
		e.finish(e.claim(), tgr.Success)
		e.must(e.Settle(e.ctx, run, func(_ tgr.Run, jobs []tgr.Job) (store.Change, error) {
			return store.Change{Skip: map[tgr.JobID]string{byKey(jobs, "test")[0].ID: "build failed", byKey(jobs, "ship")[0].ID: "test was skipped"}}, nil
		}))
		return run
	}
	each(t, func(t *testing.T, e *env) {
		run := setup(e)
		names := map[string]bool{}
		old, err := e.Jobs(e.ctx, run, 1)
		e.must(err)
		attempt, err := e.Rerun(e.ctx, run, store.Again{Failed: true})
		e.must(err)
		_, err = e.Rerun(e.ctx, run, store.Again{})
		e.code(err, tgr.Conflict)
		failed := ""
		for _, j := range old {
			names[j.Name] = true
			if j.Conclusion == tgr.Failure {
				failed = j.Name
			}
		}
		jobs, err := e.Jobs(e.ctx, run, attempt)
		e.must(err)
		got := map[string]string{}
		for _, j := range jobs {
			got[j.Name] = tgr.Outcome{Status: j.Status, Conclusion: j.Conclusion}.String()
			origin, err := e.LogOf(e.ctx, j.ID)
			e.must(err)
			if carried := j.Status == tgr.Completed; carried != (origin != j.ID) {
				t.Errorf("%s: its log is that of job %d", j.Name, origin)
			}
			if j.Status == tgr.Completed && j.Outputs["from"] != j.Name {
				t.Errorf("%s was carried over without its outputs", j.Name)
			}
		}
		want := map[string]string{"build (0)": "completed (success)", "build (1)": "completed (success)", "lint (0)": "completed (success)", "test": "pending", "ship": "pending"}
		want[failed] = "queued"
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("attempt 2 (-want +got):\n%s", d)
		}
		still, err := e.Jobs(e.ctx, run, 1)
		e.must(err)
		if d := cmp.Diff(old, still); d != "" {
			t.Errorf("the first attempt changed:\n%s", d)
		}
		l := e.claim()
		if l.Job.Name != failed || l.Run.Attempt != 2 || l.Job.Attempt != 2 {
			t.Fatalf("claimed %+v", l.Job)
		}
		e.finish(l, tgr.Success)
		e.cancelAll(run)
		_, err = e.Rerun(e.ctx, run, store.Again{Job: 9999})
		e.code(err, tgr.Conflict)
		test := byKey(must(e.Jobs(e.ctx, run, 2)), "test")[0]
		_, err = e.Rerun(e.ctx, run, store.Again{Job: test.ID})
		e.must(err)
		e.cancelAll(run)
		if _, err = e.Rerun(e.ctx, run, store.Again{}); err != nil {
			t.Fatal(err)
		}
		e.looks(run, "run #1.4: queued", "test: pending", "ship: pending", "build (0): queued", "build (1): queued", "lint (0): queued")
	})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestRunsAndDepth(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		var ids []tgr.RunID
		for i := range 5 {
			ids = append(ids, e.accept(fmt.Sprint("d", i)))
		}
		other := delivery("other")
		other.Event.Repo.FullName, other.Event.Name, other.Event.HeadRef = "bob/tool", "pull_request", "topic"
		runs, _, err := e.Accept(e.ctx, other)
		e.must(err)
		for name, tc := range map[string]struct {
			f    store.RunFilter
			want []tgr.RunID
		}{
			"all":      {store.RunFilter{}, []tgr.RunID{runs[0], ids[4], ids[3], ids[2], ids[1], ids[0]}},
			"page":     {store.RunFilter{Repo: "ada/engine", Limit: 2, Before: ids[4]}, []tgr.RunID{ids[3], ids[2]}},
			"branch":   {store.RunFilter{Branch: "topic", Event: "pull_request"}, runs},
			"main":     {store.RunFilter{Branch: "main", Limit: 1, Status: tgr.Queued}, []tgr.RunID{ids[4]}},
			"delivery": {store.RunFilter{Delivery: "d1"}, []tgr.RunID{ids[1]}},
			"none":     {store.RunFilter{Workflow: "'; DROP TABLE runs; --"}, nil},
		} {
			got, err := e.Runs(e.ctx, tc.f)
			e.must(err)
			var have []tgr.RunID
			for _, r := range got {
				have = append(have, r.ID)
			}
			if !slices.Equal(have, tc.want) {
				t.Errorf("%s: Runs = %v; want %v", name, have, tc.want)
			}
		}
		at := e.clock.now()
		e.clock.add(time.Minute)
		e.claim()
		d, err := e.QueueDepth(e.ctx)
		e.must(err)
		if want := (store.Depth{Queued: 5, InProgress: 1, Oldest: at}); d != want {
			t.Errorf("QueueDepth = %+v; want %+v", d, want)
		}
	})
}

func TestContextEnds(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		why := errors.New("why")
		ctx, cancel := context.WithCancelCause(e.ctx)
		cancel(why)
		if _, _, err := e.Accept(ctx, delivery("late")); !errors.Is(err, why) {
			t.Fatalf("Accept = %v; want the cause", err)
		}
		if _, err := e.Delivery(e.ctx, "late"); tgr.CodeOf(err) != tgr.NotFound {
			t.Fatalf("an abandoned delivery was stored: %v", err)
		}
		// While the writer is busy, a caller that gives up leaves nothing behind.
		run := e.planned("d", work("a"))
		ctx, cancel = context.WithCancelCause(e.ctx)
		busy, free := make(chan struct{}), make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			e.Settle(e.ctx, run, func(tgr.Run, []tgr.Job) (store.Change, error) { close(busy); <-free; return store.Change{}, nil })
		})
		<-busy
		cancelled := make(chan error)
		wg.Go(func() { _, _, err := e.Accept(ctx, delivery("later")); cancelled <- err })
		cancel(why)
		if err := <-cancelled; !errors.Is(err, why) {
			t.Errorf("Accept = %v; want the cause", err)
		}
		close(free)
		wg.Wait()
		if _, err := e.Delivery(e.ctx, "later"); tgr.CodeOf(err) != tgr.NotFound {
			t.Errorf("an abandoned delivery was stored: %v", err)
		}
	})
}

// What only the source knew of an event is the event's from then on.
func TestPlannedEvent(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		e.accept("d")
		l := e.claim()
		ev := l.Run.Event
		ev.SHA = "89abcdef89abcdef89abcdef89abcdef89abcdef"
		runs, err := e.Planned(e.ctx, l.Job.ID, l.Token, store.Planned{Event: &ev, Runs: []store.PlannedRun{{WorkflowFile: "w.yml", Jobs: []tgr.Job{work("a")}}}})
		e.must(err)
		run, err := e.Run(e.ctx, runs[0])
		e.must(err)
		if diff := cmp.Diff(ev, run.Event); diff != "" {
			t.Errorf("the run's event (-want +got):\n%s", diff)
		}
	})
}
