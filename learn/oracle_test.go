package learn

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/terraphim/tgr"
)

// told is one job as somebody would tell it: the oracle counts with these, and not with records.
type told struct {
	job, tree, branch string
	ms                int64
	ok                bool
	cause             int
	memory            int64
}

func drawTold(t *rapid.T) told {
	return told{job: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "job"), tree: fmt.Sprint("t", rapid.IntRange(0, 12).Draw(t, "tree")),
		branch: rapid.SampledFrom([]string{"main", "x", "y"}).Draw(t, "branch"), ms: rapid.Int64Range(0, 1e7).Draw(t, "ms"),
		ok: rapid.IntRange(0, 3).Draw(t, "ok") > 0, cause: rapid.IntRange(0, 3).Draw(t, "cause"), memory: rapid.Int64Range(0, 4000).Draw(t, "memory")}
}

func (h *history) tell(x told) Record {
	said := []string{"error: the widget is broken", "panic: no such ledger", "undefined: voucher of palette", "timeout while waiting for cursors"}[x.cause]
	d := did{run: "make test", took: time.Duration(x.ms) * time.Millisecond}
	if !x.ok {
		d.exit, d.logs = 1, said
	}
	return h.job(x.job, tgr.Event{Tree: x.tree, Ref: "refs/heads/" + x.branch}, func(r *Record) { r.Job.Steps[0].MemoryMiB = x.memory }, d)
}

// TestOracle holds the fold to a count that anybody can follow: of the whole history, the slow way.
func TestOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := newHistory()
		var all []told
		for range rapid.IntRange(1, 120).Draw(t, "jobs") {
			x := drawTold(t)
			h.tell(x)
			all = append(all, x)
		}
		causes := map[int]int{}
		for _, job := range []string{"a", "b"} {
			n, memory := 0, []int64(nil)
			var ms []int64
			for _, x := range all {
				if x.job != job {
					continue
				}
				if n++; x.memory > 0 {
					memory = append(memory, x.memory)
				}
				if x.ok {
					ms = append(ms, x.ms)
				} else {
					causes[x.cause]++
				}
			}
			u := h.sp.units[keyOf("ci.yml", job)]
			if n == 0 {
				if u != nil {
					t.Fatalf("%s was never told of: %+v", job, u)
				}
				continue
			}
			if u.Own.N != n || !slices.Equal(u.Ms, ms[max(0, len(ms)-kept):]) {
				t.Fatalf("%s: %d runs, durations %v; want %d and %v", job, u.Own.N, u.Ms, n, ms)
			}
			checkTiming(t, h.sp, job, n, ms, memory)
			checkFlakes(t, u, all, job)
		}
		clusters := 0
		for _, n := range causes {
			if n > 0 {
				clusters++
			}
		}
		if got := h.sp.failures(); len(got) != clusters {
			t.Fatalf("%d clusters of %d causes: %+v", len(got), clusters, got)
		}
	})
}

// checkTiming compares what is shown of a job with the samples.
func checkTiming(t *rapid.T, sp *space, job string, n int, ms, memory []int64) {
	at := slices.IndexFunc(sp.timings(), func(x tgr.Timing) bool { return x.Job == job && x.Step == "" })
	got := sp.timings()[at]
	if got.N != n || got.Enough != (n >= Enough) || (got.Success > 0) != got.Enough {
		t.Fatalf("%s: %+v of %d", job, got, n)
	}
	var median time.Duration
	if len(ms) >= Enough {
		last := slices.Clone(ms[max(0, len(ms)-30):])
		slices.Sort(last)
		median = time.Duration(last[(len(last)+1)/2-1]) * time.Millisecond
	}
	if got.Median != median {
		t.Fatalf("%s: median %s, want %s of %v", job, got.Median, median, ms)
	}
	if memory = memory[max(0, len(memory)-recent):]; len(memory) < Enough {
		if got.MemoryMiB != 0 {
			t.Fatalf("%s: %d MiB of %v", job, got.MemoryMiB, memory)
		}
		return
	}
	slices.Sort(memory)
	p95 := memory[int(math.Ceil(0.95*float64(len(memory))))-1]
	if got.PeakMiB != p95 || got.MemoryMiB != int64(math.Ceil(1.3*float64(p95))) {
		t.Fatalf("%s: %d and %d MiB, want the p95 %d of %v", job, got.PeakMiB, got.MemoryMiB, p95, memory)
	}
}

// checkFlakes says that a job is certainly flaky where two runs failed on trees that passed as well, as far as it remembers.
func checkFlakes(t *rapid.T, u *unit, all []told, job string) {
	var mine []told
	for _, x := range all {
		if x.job == job {
			mine = append(mine, x)
		}
	}
	if len(mine) > recent {
		return // the oracle remembers more than the learner does
	}
	passed, failed := map[string]bool{}, map[string]bool{}
	for _, x := range mine {
		if x.ok {
			passed[x.tree] = true
		} else {
			failed[x.tree] = true
		}
	}
	both := 0
	for tree := range failed {
		if passed[tree] {
			both++
		}
	}
	f := u.flakiness()
	if both == 0 && f.Definite || both >= 2 && !f.Definite {
		t.Fatalf("%s failed and passed on %d trees: %+v", job, both, f)
	}
	for _, run := range f.Evidence {
		if f.Definite && all[run-1].ok {
			t.Fatalf("run %d is evidence and has passed", run)
		}
	}
}

// What strangers run in between changes nothing of what is believed of the repository.
func TestStrangersTeachNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		alone, beside := newHistory(), newHistory()
		forks := newSpace("o/r", true)
		for range rapid.IntRange(1, 40).Draw(t, "jobs") {
			x := drawTold(t)
			a := alone.tell(x)
			for range rapid.IntRange(0, 3).Draw(t, "strangers") {
				r := a
				r.Run.Event.Forked, r.Job.Conclusion = true, tgr.Failure
				forks.fold(r)
			}
			beside.tell(x)
		}
		one, two := rowsFor(t, alone.sp), rowsFor(t, beside.sp)
		if diff := cmp.Diff(one, two); diff != "" {
			t.Fatal(diff)
		}
		if spaceOf(tgr.Event{Repo: tgr.Repo{ID: 1}}) == spaceOf(tgr.Event{Repo: tgr.Repo{ID: 1}, Forked: true}) {
			t.Fatal("forks share the repository's space")
		}
	})
}

// rowsFor is rowsOf for a property.
func rowsFor(t *rapid.T, sp *space) map[string]string {
	out := map[string]string{}
	for key, u := range sp.units {
		out["unit "+key] = fmt.Sprint(*u)
	}
	for key, e := range sp.edges {
		out["edge "+key] = fmt.Sprint(*e)
	}
	for id, c := range sp.clusters {
		out["cluster "+idKey(id)] = fmt.Sprint(*c)
	}
	return out
}

// What is told of a space does not depend on whether it was stored in between: not what is shown, nor what is advised.
func TestToldTheSameAfterAStart(t *testing.T) {
	records := NewTrace(TraceConfig{Seed: 12, Commits: 60, Jobs: 4, Lines: 4}).Records
	sp := newSpace("octo/app", false)
	for i, r := range records {
		sp.fold(r)
		if i%40 != 0 && i != len(records)-1 {
			continue
		}
		again := reloaded(t, sp, newSpace("octo/app", false))
		if diff := cmp.Diff(sp.insights("npm test"), again.insights("npm test")); diff != "" {
			t.Fatalf("after %d records (-before +after a start):\n%s", i+1, diff)
		}
		if a, b := sp.hint(r.Run, r.Job), again.hint(r.Run, r.Job); a != b {
			t.Fatalf("hint %q, and %q after a start", a, b)
		}
	}
}

// faulty is a log of runs that fails as it is told.
type faulty struct {
	runLog
	fails func(after int64) error
}

// Finished implements Source.
func (f faulty) Finished(ctx context.Context, after int64, limit int) ([]Record, error) {
	if err := f.fails(after); err != nil {
		return nil, err
	}
	return f.runLog.Finished(ctx, after, limit)
}

// A log that fails now and then, and a database that cannot be written for a while, cost nothing but time: what is learnt in the
// end is what would have been learnt without.
func TestLearnsThroughFaults(t *testing.T) {
	records := runLog(NewTrace(TraceConfig{Seed: 9, Commits: 30, Jobs: 4, Lines: 3, Forked: 0.1}).Records)
	dir := t.TempDir()
	smooth := openLearner(t, filepath.Join(dir, "smooth.db"), records)
	defer smooth.Close()
	catchUp(t, smooth)
	want := dump(t, smooth)

	rnd := rand.New(rand.NewPCG(1, 2))
	broken := errors.New("the disk is full")
	path := filepath.Join(dir, "rough.db")
	source := faulty{records, func(int64) error {
		if rnd.IntN(3) == 0 {
			return broken
		}
		return nil
	}}
	l := openLearner(t, path, source)
	faults, writes := 0, 0
	for range 400 {
		if rnd.IntN(4) == 0 { // nothing can be written
			if _, err := l.db.Exec("CREATE TRIGGER full BEFORE INSERT ON state BEGIN SELECT RAISE(ABORT, 'full'); END"); err != nil {
				t.Fatal(err)
			}
			if _, err := l.CatchUp(context.Background()); err != nil && !errors.Is(err, broken) {
				writes++
			}
			if _, err := l.db.Exec("DROP TRIGGER full"); err != nil {
				t.Fatal(err)
			}
		}
		if rnd.IntN(5) == 0 { // the server is killed
			l.Close()
			l = openLearner(t, path, source)
		}
		_, err := l.CatchUp(context.Background())
		if errors.Is(err, broken) {
			faults++
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		break
	}
	defer l.Close()
	if faults == 0 {
		t.Error("nothing went wrong")
	}
	if diff := cmp.Diff(want, dump(t, l)); diff != "" {
		t.Errorf("through %d faults of the log and %d of the database it has learnt something else:\n%s", faults, writes, diff)
	}
}

// A write that fails in the middle leaves the state as it was, and is made good by the next.
func TestWriteFails(t *testing.T) {
	records := runLog(NewTrace(TraceConfig{Seed: 3, Commits: 10, Jobs: 2}).Records)
	dir := t.TempDir()
	other := openLearner(t, filepath.Join(dir, "other.db"), records)
	defer other.Close()
	catchUp(t, other)
	l := openLearner(t, filepath.Join(dir, "learn.db"), records)
	defer l.Close()
	if _, err := l.db.Exec("CREATE TRIGGER full BEFORE INSERT ON state WHEN NEW.kind = 'unit' BEGIN SELECT RAISE(ABORT, 'the disk is full'); END"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.CatchUp(context.Background()); err == nil || !strings.Contains(err.Error(), "the disk is full") {
		t.Fatalf("the write: %v", err)
	}
	if got := dump(t, l); got != "" {
		t.Errorf("half of it was written:\n%s", got)
	}
	if _, err := l.db.Exec("DROP TRIGGER full"); err != nil {
		t.Fatal(err)
	}
	catchUp(t, l)
	if diff := cmp.Diff(dump(t, other), dump(t, l)); diff != "" {
		t.Errorf("after a write that failed:\n%s", diff)
	}
}

// Rows that somebody damaged are an error that names the row, and never a wrong state.
func TestDamagedRows(t *testing.T) {
	records := runLog(NewTrace(TraceConfig{Seed: 1, Commits: 3, Jobs: 2, Lines: 2}).Records)
	for name, damage := range map[string]string{
		"half a row":        "UPDATE state SET data = substr(data, 1, 10) WHERE kind = 'unit'",
		"another type":      `UPDATE state SET data = '{"o":[]}' WHERE kind = 'unit'`,
		"an unknown kind":   "UPDATE state SET kind = 'nonsense' WHERE kind = 'unit'",
		"a head of nothing": "UPDATE state SET data = 'null-' WHERE kind = 'head'",
	} {
		path := filepath.Join(t.TempDir(), "learn.db")
		l := openLearner(t, path, records)
		catchUp(t, l)
		if _, err := l.db.Exec(damage); err != nil {
			t.Fatal(err)
		}
		l.Close()
		again, err := Open(context.Background(), Config{Path: path, Source: records})
		if err == nil {
			again.Close()
			t.Errorf("%s: opened", name)
		} else if !strings.Contains(err.Error(), "stored") && !strings.Contains(err.Error(), "row") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A repository that is renamed goes on with what it knew, under its new name; one that becomes private is private at once.
func TestRenamed(t *testing.T) {
	base := NewTrace(TraceConfig{Seed: 1, Commits: 1, Jobs: 1}).Records[0]
	var records runLog
	for i := range 4 {
		r := base
		r.Seq = int64(i + 1)
		if i >= 2 {
			r.Run.Event.Repo.FullName, r.Run.Event.Repo.Private = "octo/new", true
		}
		records = append(records, r)
	}
	l := openLearner(t, filepath.Join(t.TempDir(), "learn.db"), records)
	defer l.Close()
	catchUp(t, l)
	in, err := l.Insights(t.Context(), Question{Repo: "octo/new"})
	if err != nil || in.Jobs != 4 || !in.Private {
		t.Errorf("%+v, %v", in, err)
	}
	if _, err := l.Insights(t.Context(), Question{Repo: "octo/app"}); tgr.CodeOf(err) != tgr.NotFound {
		t.Errorf("under its old name: %v", err)
	}
	list, err := l.Learnt(t.Context())
	if err != nil || len(list) != 1 || list[0].Repo != "octo/new" || !list[0].Private || list[0].Jobs != 4 {
		t.Errorf("%+v, %v", list, err)
	}
}

// The repositories are listed by when they ran last, forks by themselves.
func TestLearnt(t *testing.T) {
	base := NewTrace(TraceConfig{Seed: 1, Commits: 1, Jobs: 1}).Records[0]
	var records runLog
	for i, repo := range []string{"o/old", "o/new", "o/new"} {
		r := base
		r.Seq = int64(i + 1)
		r.Job.Finished = r.Job.Finished.Add(time.Duration(i) * time.Hour)
		r.Run.Event.Repo = tgr.Repo{ID: int64(len(repo)) + int64(repo[2]), FullName: repo}
		r.Run.Event.Forked = i == 2
		records = append(records, r)
	}
	l := openLearner(t, filepath.Join(t.TempDir(), "learn.db"), records)
	defer l.Close()
	catchUp(t, l)
	list, err := l.Learnt(t.Context())
	var got []string
	for _, x := range list {
		got = append(got, fmt.Sprint(x.Repo, " ", x.Forks, " ", x.Jobs))
	}
	if diff := cmp.Diff([]string{"o/new true 1", "o/new false 1", "o/old false 1"}, got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
}
