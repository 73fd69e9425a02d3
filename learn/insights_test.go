package learn

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
)

// Below eight samples nothing is said but how many there are.
func TestNotEnoughData(t *testing.T) {
	h := newHistory()
	for i := range Enough {
		h.job("t", tgr.Event{}, nil, did{run: "make", took: 10 * time.Second})
		got := h.sp.timings()[0]
		want := tgr.Timing{Workflow: "ci.yml", Job: "t", N: i + 1}
		for run := max(0, i+1-maxRuns) + 1; run <= i+1; run++ {
			want.Evidence = append(want.Evidence, tgr.RunID(run))
		}
		if i+1 == Enough {
			want.Enough, want.Median, want.P90, want.Timeout = true, 10*time.Second, 10*time.Second, 2*time.Minute+10*time.Second
			want.Success, want.Low, want.High = got.Success, got.Low, 1
			if got.Success < 0.9 || got.Low < 0.6 {
				t.Errorf("eight successes of eight: %+v", got)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("after %d (-want +got):\n%s", i+1, diff)
		}
	}
	if c := h.sp.about("make"); !c.Enough || h.sp.about("never").Enough {
		t.Errorf("make: %+v", c)
	}
}

// A new step is believed to do as its job's other steps do, until it has shown what it does.
func TestShrunkToTheParent(t *testing.T) {
	good, bad := newHistory(), newHistory()
	for range 30 {
		good.job("t", tgr.Event{}, nil, did{run: "make a", took: time.Second})
		bad.job("t", tgr.Event{}, nil, did{run: "make a", took: time.Second, exit: 1})
	}
	key := keyOf("ci.yml", "t", "make new")
	if a, b := good.sp.mean(key, false), bad.sp.mean(key, false); a < 0.9 || b > 0.1 {
		t.Errorf("a new step beside good ones: %.2f, beside bad ones: %.2f", a, b)
	}
	if other := good.sp.mean(keyOf("ci.yml", "other", "x"), false); other < 0.9 {
		t.Errorf("a step of another job: %.2f", other)
	}
	if other := newSpace("", false).mean(key, false); other != 0.5 {
		t.Errorf("where nothing is known: %.2f", other)
	}
}

// What forks taught is told apart, and an unknown repository is not found.
func TestForksApart(t *testing.T) {
	trace := NewTrace(TraceConfig{Seed: 8, Commits: 40, Jobs: 3, Lines: 2, Forked: 0.4})
	l := openLearner(t, filepath.Join(t.TempDir(), "learn.db"), runLog(trace.Records))
	defer l.Close()
	catchUp(t, l)
	ask := func(q Question) tgr.Insights {
		in, err := l.Insights(context.Background(), q)
		if err != nil {
			t.Fatal(err)
		}
		return in
	}
	own, forks := ask(Question{Repo: "OCTO/App"}), ask(Question{Repo: "octo/app", Forks: true})
	if own.Forks || !forks.Forks || own.Jobs+forks.Jobs != len(trace.Records) || forks.Jobs == 0 {
		t.Errorf("%d jobs of its own, %d of forks, %d in all", own.Jobs, forks.Jobs, len(trace.Records))
	}
	if own.Timings[0].Success < 0.5 || forks.Timings[0].Success > 0.5 {
		t.Errorf("its own succeed with %.2f, those of forks with %.2f, which always fail", own.Timings[0].Success, forks.Timings[0].Success)
	}
	if _, err := l.Insights(context.Background(), Question{Repo: "octo/other"}); tgr.CodeOf(err) != tgr.NotFound {
		t.Errorf("of another repository: %v", err)
	}
}

// More repositories than fit in memory: those that were used long ago are read again, and are as they were.
func TestManyRepositories(t *testing.T) {
	var records runLog
	base := NewTrace(TraceConfig{Seed: 2, Commits: 1, Jobs: 1}).Records[0]
	for round := range 2 {
		for i := range 2 * spacesHeld {
			r := base
			r.Seq = int64(len(records) + 1)
			r.Run.Event.Repo = tgr.Repo{ID: int64(i + 1), FullName: fmt.Sprint("o/", i)}
			r.Run.ID = tgr.RunID(round + 1)
			records = append(records, r)
		}
	}
	l := openLearner(t, filepath.Join(t.TempDir(), "learn.db"), records)
	defer l.Close()
	catchUp(t, l)
	if len(l.spaces) > spacesHeld || len(l.used) > spacesHeld {
		t.Errorf("%d repositories in memory, %d remembered", len(l.spaces), len(l.used))
	}
	for i := range 2 * spacesHeld {
		if in, err := l.Insights(context.Background(), Question{Repo: fmt.Sprint("o/", i)}); err != nil || in.Jobs != 2 {
			t.Errorf("repository %d: %d jobs, %v", i, in.Jobs, err)
		}
	}
}

// A time-out is suggested from memory, after enough successes, also right after a start.
func TestTimeoutOfJob(t *testing.T) {
	path := filepath.Join(t.TempDir(), "learn.db")
	var records runLog
	base := NewTrace(TraceConfig{Seed: 2, Commits: 1, Jobs: 1}).Records[0]
	for i := range Enough {
		r := base
		r.Seq = int64(i + 1)
		records = append(records, r)
	}
	took := base.Job.Finished.Sub(base.Job.Started).Truncate(time.Millisecond)
	for n, want := range map[int]time.Duration{Enough - 1: 0, Enough: max(3*took, took+2*time.Minute)} {
		l := openLearner(t, path, records[:n])
		catchUp(t, l)
		l.Close()
		l = openLearner(t, path, records[:n])
		if got := l.Timeout(base.Run, base.Job); got != want && base.Job.Conclusion == tgr.Success {
			t.Errorf("after %d: %s, want %s", n, got, want)
		}
		if got := l.Timeout(tgr.Run{}, base.Job); got != 0 {
			t.Errorf("of an unknown repository: %s", got)
		}
		l.Close()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// What is no database is an error that names it, and the file is for its owner alone.
func TestOpenFails(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.db")
	if err := os.WriteFile(bad, []byte("this is no database, and never was one, however long it may be; "), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(context.Background(), Config{Path: bad, Source: runLog(nil)}); tgr.CodeOf(err) != tgr.Internal {
		t.Errorf("opened: %v", err)
	}
	good := filepath.Join(dir, "sub", "learn.db")
	openLearner(t, good, runLog(nil)).Close()
	info, err := os.Stat(good)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// A history is the same for the same seed, and another for another.
func TestTrace(t *testing.T) {
	c := TraceConfig{Seed: 1, Commits: 5, Jobs: 4, Lines: 3, Forked: 0.2}
	a, b := NewTrace(c), NewTrace(c)
	if diff := cmp.Diff(a, b); diff != "" {
		t.Errorf("the same seed differs:\n%s", diff)
	}
	c.Seed = 2
	if cmp.Equal(a, NewTrace(c)) {
		t.Error("another seed is the same")
	}
	if !slices.IsSortedFunc(a.Records, func(x, y Record) int { return int(x.Seq - y.Seq) }) {
		t.Error("the records are out of order")
	}
}

// The measures themselves, on cases that can be checked by hand.
func TestScores(t *testing.T) {
	set := func(keys ...string) map[string]bool {
		m := map[string]bool{}
		for _, k := range keys {
			m[k] = true
		}
		return m
	}
	if f, p, r := f1(set("a", "b"), set("a", "c")); f != 0.5 || p != 0.5 || r != 0.5 {
		t.Errorf("f1 %v, precision %v, recall %v", f, p, r)
	}
	if f, _, _ := f1(set(), set("a")); f != 0 {
		t.Errorf("nothing found: %v", f)
	}
	truth := map[int64]int{1: 1, 2: 1, 3: 2}
	for name, tt := range map[string]struct {
		found map[int64]uint64
		want  float64
	}{
		"all right": {map[int64]uint64{1: 9, 2: 9, 3: 8}, 1},
		"one group": {map[int64]uint64{1: 9, 2: 9, 3: 9}, 0},
		"split":     {map[int64]uint64{1: 7, 2: 9, 3: 8}, 1.0 / 3},
	} {
		if got := grouping(tt.found, truth); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
	if math.Abs(pinball(0.9, 10, 20)-9)+math.Abs(pinball(0.9, 20, 10)-1) > 1e-9 || above(3, 2) != 1 || above(2, 2) != 0 {
		t.Error("pinball or above is wrong")
	}
}
