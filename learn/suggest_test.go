package learn

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/terraphim/tgr"
)

// history makes records of one repository by hand.
type history struct {
	sp  *space
	seq int64
	now time.Time
}

func newHistory() *history {
	return &history{sp: newSpace("o/r", false), now: time.Unix(1_700_000_000, 0)}
}

// did is one step: its command, how long it took, and how it ended.
type did struct {
	run  string
	took time.Duration
	exit int
	logs string
}

// job folds one job and returns its record.
func (h *history) job(key string, ev tgr.Event, change func(*Record), steps ...did) Record {
	h.seq++
	h.now = h.now.Add(time.Minute)
	ev.Repo = tgr.Repo{ID: 1, FullName: "o/r"}
	if ev.SHA == "" {
		ev.SHA = fmt.Sprint("sha", h.seq)
	}
	if ev.Ref == "" {
		ev.Ref = "refs/heads/main"
	}
	r := Record{Seq: h.seq, Commands: map[int]Command{}, Run: tgr.Run{ID: tgr.RunID(h.seq), WorkflowFile: "ci.yml", Event: ev},
		Job: tgr.Job{ID: tgr.JobID(h.seq), Run: tgr.RunID(h.seq), Kind: tgr.WorkJob, Key: key, Status: tgr.Completed, Conclusion: tgr.Success, Started: h.now}}
	for i, s := range steps {
		st := tgr.Step{Number: i + 1, Name: s.run, Status: tgr.Completed, Conclusion: tgr.Success, Started: h.now, ExitCode: &s.exit}
		h.now = h.now.Add(s.took)
		if st.Finished = h.now; s.exit != 0 {
			st.Conclusion, r.Job.Conclusion = tgr.Failure, tgr.Failure
		}
		r.Job.Steps = append(r.Job.Steps, st)
		if uses, ok := strings.CutPrefix(s.run, "uses "); ok {
			r.Commands[i+1] = Command{Uses: uses}
		} else {
			r.Commands[i+1] = Command{Run: s.run}
		}
		for line := range strings.Lines(s.logs) {
			r.Log = append(r.Log, tgr.LogLine{Step: i + 1, Text: strings.TrimSpace(line)})
		}
	}
	r.Job.Finished = h.now
	if change != nil {
		change(&r)
	}
	h.sp.fold(r)
	return r
}

// kinds are the suggestions of a kind, which must all have evidence.
func (h *history) kinds(t *testing.T, kind string) (out []tgr.Suggestion) {
	t.Helper()
	for _, s := range h.sp.suggestions() {
		if s.Kind == kind {
			out = append(out, s)
			if len(s.Evidence) == 0 || s.Confidence <= 0 || s.Confidence > 1 {
				t.Errorf("%+v has no evidence, or no confidence", s)
			}
		}
	}
	return out
}

// Each kind of suggestion is made where there is reason to, with its saving, and not before there is enough data.
func TestSuggestions(t *testing.T) {
	ok := tgr.Event{}
	tests := []struct {
		kind string
		one  func(h *history, i int) // the i-th round
		need int                     // rounds until it is said
		want string
	}{
		{tgr.SuggestCache, func(h *history, i int) {
			h.job("a", ok, nil, did{run: "npm ci", took: 60 * time.Second})
			h.job("b", ok, nil, did{run: "uses actions/cache@v4"}, did{run: "npm ci", took: 10 * time.Second})
		}, 8, "npm ci takes 1m0s in jobs without actions/cache and 10s in jobs with it. Keep ~/.npm there too."},
		{tgr.SuggestParallelise, func(h *history, i int) {
			h.job("lint", ok, nil, did{run: "make lint", took: 2 * time.Minute})
			h.job("test", ok, func(r *Record) { r.Job.Needs = []string{"lint"} }, did{run: "make test", took: 5 * time.Minute})
		}, 20, "It waits for lint"},
		{tgr.SuggestSplit, func(h *history, i int) {
			h.job("all", ok, nil, did{run: "make unit", took: 6 * time.Minute}, did{run: "make e2e", took: 7 * time.Minute})
		}, 8, "jobs of their own would take 7m0s"},
		{tgr.SuggestTimeout, func(h *history, i int) {
			h.job("t", ok, nil, did{run: "make test", took: time.Minute})
			if i == 0 {
				h.job("t", ok, func(r *Record) { r.Job.Conclusion, r.Job.Steps[0].Conclusion = tgr.TimedOut, tgr.TimedOut }, did{run: "make test", took: 6 * time.Hour, exit: 1})
			}
		}, 8, "timeout-minutes: 3 would end it sooner"},
		{tgr.SuggestAvoid, func(h *history, i int) {
			h.job("t", ok, nil, did{run: "make flaky", took: time.Second, exit: 1})
		}, 8, "make flaky fails more often than not"},
		{tgr.SuggestAlternative, func(h *history, i int) {
			h.job("a", ok, nil, did{run: "npm install", took: time.Second, exit: (i + 1) % 2})
			h.job("b", ok, nil, did{run: "npm ci", took: time.Second})
			h.job("b", ok, nil, did{run: "npm ci", took: time.Second})
		}, 14, "npm ci in at least"},
		{tgr.SuggestQuarantine, func(h *history, i int) {
			h.job("t", tgr.Event{SHA: fmt.Sprint("c", i)}, nil, did{run: "make test", took: time.Second})
			if i%3 == 0 {
				h.job("t", tgr.Event{SHA: fmt.Sprint("c", i)}, nil, did{run: "make test", took: time.Second, exit: 1})
			}
		}, 8, "where the same code also passed"},
		{tgr.SuggestMemory, func(h *history, i int) {
			exit := 0
			if i%3 == 0 {
				exit = 137
			}
			h.job("t", ok, nil, did{run: "make test", took: time.Second, exit: exit})
		}, 8, "though no kernel said so"},
		{tgr.SuggestSlower, func(h *history, i int) {
			took := 10 * time.Second
			if i >= 20 {
				took = 20 * time.Second
			}
			h.job("t", ok, nil, did{run: "make test", took: took})
		}, 28, "2.0 times the 10s of before"},
	}
	for _, tt := range tests {
		t.Run(tt.kind, func(t *testing.T) {
			h := newHistory()
			for i := range tt.need {
				if i == 5 {
					if early := h.kinds(t, tt.kind); len(early) > 0 {
						t.Errorf("said after %d rounds: %+v", i, early)
					}
				}
				tt.one(h, i)
			}
			got := h.kinds(t, tt.kind)
			if len(got) == 0 || !strings.Contains(got[0].Text, tt.want) {
				t.Errorf("suggestions: %+v\nwant %q among %+v", got, tt.want, h.sp.suggestions())
			}
		})
	}
}

// The graph: what followed on what, what failed with what, and what mended it.
func TestGraph(t *testing.T) {
	h := newHistory()
	fails := func(i int) {
		h.job("t", tgr.Event{}, nil, did{run: "npm ci", took: time.Second}, did{run: "npm test", took: time.Second, exit: 1, logs: fmt.Sprintf("Error: no ledger at 0x%x after %d ms\n", i*999, i)})
	}
	mended := func() {
		h.job("t", tgr.Event{Name: "push", Payload: []byte(`{"commits":[{"added":["ledger.js"],"modified":["package.json"]}]}`)}, nil,
			did{run: "npm ci", took: time.Second}, did{run: "npm test", took: time.Second, logs: "ok\n"})
	}
	for round := range 4 {
		for i := range 3 {
			fails(round*3 + i)
		}
		mended()
	}
	cs := h.sp.failures()
	if len(cs) != 1 || cs[0].N != 12 || len(cs[0].Fixes) != 1 || cs[0].Fixes[0].To != "ledger.js package.json" || cs[0].Fixes[0].N != 4 {
		t.Fatalf("clusters: %+v", cs)
	}
	ls := h.sp.lessons()
	if len(ls) != 1 || ls[0].Command != "npm test" || ls[0].N != 12 || ls[0].Fix != "ledger.js package.json" || ls[0].Confidence < 0.5 {
		t.Errorf("lessons: %+v", ls)
	}
	c := h.sp.about("npm ci")
	if !c.Enough || c.Success < 0.8 || len(c.Related) != 1 || c.Related[0].To != "npm test" || c.Related[0].N != 16 || c.Related[0].Low > 0.3 {
		t.Errorf("npm ci: %+v", c)
	}
	if p := c.Related[0].Success; p > 0.5 || p < 0.1 {
		t.Errorf("npm test after npm ci succeeds with %v: it did in 4 of 16", p)
	}
	if p := h.sp.next("npm test", "npm ci"); p != 0 {
		t.Errorf("predicted what was never seen: %v", p)
	}
	// Confidence fades: a year later it is no lesson any more.
	h.now = h.now.Add(365 * 24 * time.Hour)
	h.job("other", tgr.Event{}, nil, did{run: "true", took: time.Second})
	if ls := h.sp.lessons(); len(ls) != 0 {
		t.Errorf("a year later: %+v", ls)
	}
}

// A pull request hears at most one thing, and only where it is known.
func TestHint(t *testing.T) {
	h := newHistory()
	fail := did{run: "npm test", took: time.Second, exit: 1, logs: "Error: no ledger\n"}
	pull := tgr.Event{HeadRef: "change"}
	push := tgr.Event{HeadRef: "change", Name: "push", Payload: []byte(`{"commits":[{"added":["ledger.js"]}]}`)}
	l := &Learner{spaces: map[string]*space{"1": h.sp}}
	hint := func(r Record) string { return l.Hint(r.Run, []tgr.Job{r.Job}) }
	if got := hint(h.job("t", pull, nil, fail)); got != "" {
		t.Errorf("of the first failure: %q", got)
	}
	h.job("t", push, nil, did{run: "npm test", took: time.Second})
	h.job("t", pull, nil, fail)
	h.job("t", push, nil, did{run: "npm test", took: time.Second})
	r := h.job("t", pull, nil, fail)
	if got := hint(r); !strings.Contains(got, "failed like this 3 times (run 1, 3, 5). It went away with a change of ledger.js (run 4)") {
		t.Errorf("of the third: %q", got)
	}
	for i := range 8 {
		h.job("t", tgr.Event{SHA: fmt.Sprint("c", i)}, nil, did{run: "npm test", took: time.Second})
		r = h.job("t", tgr.Event{SHA: fmt.Sprint("c", i)}, nil, fail)
	}
	if got := hint(r); !strings.Contains(got, "is flaky") {
		t.Errorf("of a flaky step: %q", got)
	}
	r.Job.Blame = tgr.BlameOurs
	if got := hint(r); got != "" {
		t.Errorf("of a fault of ours: %q", got)
	}
	r.Run.Event.Forked = true
	if got := hint(r); got != "" {
		t.Errorf("of a fork, of which nothing is known: %q", got)
	}
}

// What jobs took of their machines is told of each job and step, with the runs that had the most, and only from eight of them on.
func TestSizes(t *testing.T) {
	h := newHistory()
	took := func(memory int64, cpu time.Duration) func(*Record) {
		return func(r *Record) {
			r.Job.Steps[0].MemoryMiB, r.Job.Steps[0].CPU = memory/2, cpu
			r.Job.Steps[1].MemoryMiB, r.Job.Steps[1].CPU = memory, cpu
		}
	}
	steps := []did{{run: "npm ci", took: time.Second}, {run: "make", took: time.Second}}
	for i := range 7 {
		h.job("t", tgr.Event{}, took(1000+int64(i), time.Second), steps...)
	}
	if in := h.sp.insights(""); in.Timings[0].MemoryMiB != 0 || in.Timings[0].CPU != 0 || len(in.NotMeasured) != 2 {
		t.Errorf("with seven samples: %+v, not measured: %v", in.Timings[0], in.NotMeasured)
	}
	h.job("t", tgr.Event{}, took(900, time.Second), steps...)
	in := h.sp.insights("")
	got := in.Timings[0]
	if got.PeakMiB != 1006 || got.MemoryMiB != 1308 || got.CPU != 2*time.Second || !slices.Equal(got.MemoryOf, []tgr.RunID{7}) || len(in.NotMeasured) != 0 {
		t.Errorf("of the job: %+v, not measured: %v", got, in.NotMeasured)
	}
	if first := in.Timings[slices.IndexFunc(in.Timings, func(t tgr.Timing) bool { return t.Step == "npm ci" })]; first.PeakMiB != 503 || first.CPU != time.Second {
		t.Errorf("of its first step: %+v", first)
	}
	if len(h.kinds(t, tgr.SuggestMemory)) != 0 {
		t.Error("memory is suggested, and it never ran out")
	}
}

// Where memory ran out, what was seen is what there was: the size is a step higher, until that is long ago.
func TestOutOfMemory(t *testing.T) {
	h := newHistory()
	job := func(exit int, memory int64) {
		h.job("t", tgr.Event{}, func(r *Record) { r.Job.Steps[0].MemoryMiB, r.Job.Steps[0].OutOfMemory = memory, exit != 0 }, did{run: "make", took: time.Second, exit: exit})
	}
	for range 8 {
		job(0, 0)
	}
	job(137, 0)
	if s := h.kinds(t, tgr.SuggestMemory); len(s) != 1 || !strings.Contains(s[0].Text, "how large is not known") || !slices.Equal(s[0].Evidence, []tgr.RunID{9}) {
		t.Errorf("measured by nobody: %+v", s)
	}
	for range 8 {
		job(0, 500)
	}
	job(137, 800)
	in := h.sp.insights("")
	if got := in.Timings[0]; got.MemoryMiB != 2048 || got.PeakMiB != 800 || !slices.Equal(got.MemoryOf, []tgr.RunID{9, 18}) {
		t.Errorf("1.3 times 800 is 1040, and the step above that 2048: %+v", got)
	}
	if s := h.kinds(t, tgr.SuggestMemory); len(s) != 1 || !strings.Contains(s[0].Text, "2 of its last runs, with 800 MiB seen in use. Try a machine with 2048 MiB") {
		t.Errorf("suggested: %+v", s)
	}
	for range recent {
		job(0, 500)
	}
	if got := h.sp.insights("").Timings[0]; got.MemoryMiB != 650 || len(h.kinds(t, tgr.SuggestMemory)) != 0 {
		t.Errorf("long after: %+v", got)
	}
}

// A suggested size holds what 95 of 100 runs had and a third more, and is told by runs that had at least that much.
func TestSizeHoldsWhatWasSeen(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		u := &unit{}
		for i, mib := range rapid.SliceOfN(rapid.Int64Range(1, 1<<26), 0, 2*recent).Draw(t, "seen") {
			u.Own.add(true)
			u.took(int64(i), mib, 0, true)
		}
		if rapid.Bool().Draw(t, "oom") {
			u.OOM = []flake{{99, int64(u.Own.N)}}
		}
		s := u.size()
		if len(u.Memory) < Enough {
			if s.Memory != 0 || s.Peak != 0 {
				t.Fatalf("%+v of %d samples", s, len(u.Memory))
			}
			return
		}
		fits := 0
		for _, p := range u.Memory {
			if float64(p[1])*headroom <= float64(s.Memory) {
				fits++
			}
			if s.Ran == 0 && slices.Contains(s.Evidence, p[0]) && p[1] < s.Peak {
				t.Fatalf("run %d is evidence with %d MiB, below the peak of %d", p[0], p[1], s.Peak)
			}
		}
		if fits*100 < 95*len(u.Memory) || len(s.Evidence) == 0 {
			t.Fatalf("%+v fits %d of %d", s, fits, len(u.Memory))
		}
	})
}

// A file after whose change a job surely fails more often is a risk; one that fails no more often than others is not.
func TestRisks(t *testing.T) {
	h := newHistory()
	push := func(file string) tgr.Event {
		return tgr.Event{Name: "push", Payload: []byte(fmt.Sprintf(`{"commits":[{"modified":[%q]}]}`, file))}
	}
	for i := range 40 {
		if i%2 == 0 {
			h.job("t", push("schema.sql"), nil, did{run: "make", took: time.Second, exit: 1, logs: "error: it broke\nerror: and so did this"})
		} else {
			h.job("t", push("schema.sql"), nil, did{run: "make", took: time.Second})
		}
		h.job("t", push("README"), nil, did{run: "make", took: time.Second})
		h.job("t", push("README"), nil, did{run: "make", took: time.Second})
		if i == 6 {
			if got := h.sp.risks(); len(got) != 0 {
				t.Errorf("with seven samples: %+v", got)
			}
		}
	}
	got := h.sp.risks()
	if len(got) != 1 || got[0].File != "schema.sql" || got[0].Job != "t" || got[0].N != 40 || got[0].Low < 0.3 || got[0].Low > 0.5 || got[0].Usual > 0.25 || len(got[0].Evidence) != maxRuns {
		t.Errorf("risks: %+v", got)
	}
	also := h.sp.failures()[0].Also
	if len(also) != 1 || also[0].To != "error: and so did this" || also[0].N != 20 || also[0].Low < 0.7 || len(also[0].Evidence) == 0 {
		t.Errorf("what comes with it: %+v", also)
	}
}

// The estimate is the median of the last successes, of a repository that was used lately.
func TestEstimate(t *testing.T) {
	h := newHistory()
	var r Record
	l := &Learner{spaces: map[string]*space{"1": h.sp}}
	for i := range 60 {
		if got := l.Estimate(r.Run, r.Job); (got == 0) != (i < Enough) {
			t.Fatalf("%s after %d", got, i)
		}
		r = h.job("t", tgr.Event{}, nil, did{run: "make", took: time.Duration(i) * time.Second})
	}
	if got := l.Estimate(r.Run, r.Job); got != 44*time.Second {
		t.Errorf("%s, want the median of the last thirty", got)
	}
	r.Job.Key = "other"
	if got := l.Estimate(r.Run, r.Job); got != 0 {
		t.Errorf("of another job: %s", got)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if got := l.Estimate(r.Run, r.Job); got != 0 {
		t.Errorf("while it is busy: %s", got)
	}
}

// The same code under another commit is the same code: an amended message, a merge that changes nothing.
func TestSameTree(t *testing.T) {
	for _, tt := range []struct {
		name   string
		tree   func(i, half int) string
		flaky  bool
		mended bool // the pass after the failure may be thanks to its change
	}{
		{"the same tree", func(i, _ int) string { return fmt.Sprint("t", i) }, true, false},
		{"other trees", func(i, half int) string { return fmt.Sprint("t", i, half) }, false, true},
		{"not known", func(int, int) string { return "" }, false, true},
	} {
		h := newHistory()
		push := func(tree string) tgr.Event {
			return tgr.Event{Name: "push", Tree: tree, Payload: []byte(`{"commits":[{"modified":["a.js"]}]}`)}
		}
		for i := range 4 {
			h.job("t", push(tt.tree(i, 0)), nil, did{run: "make test", took: time.Second, exit: 1, logs: "error: it broke"})
			h.job("t", push(tt.tree(i, 1)), nil, did{run: "make test", took: time.Second})
		}
		if f := h.sp.flaky(); (len(f) == 1 && f[0].Definite) != tt.flaky {
			t.Errorf("%s: flaky %+v", tt.name, f)
		}
		if fixes := h.sp.failures()[0].Fixes; (len(fixes) > 0) != tt.mended {
			t.Errorf("%s: mended by %+v", tt.name, fixes)
		}
	}
}

// The files of a push are bounded, whatever it says.
func TestChanged(t *testing.T) {
	many := strings.Repeat(`"a/b/c/d.go","x.go",`, 5000)
	for _, tt := range []struct {
		name, payload string
		want          string
	}{
		{"push", `{"commits":[{"added":["a/b/c/d/e.go"],"removed":["z","z"]}]}`, "a/b/c/… z"},
		{"push", `{"commits":[{"added":[` + strings.TrimSuffix(many, ",") + `]}]}`, "a/b/c/… x.go"},
		{"push", `{"commits":`, ""},
		{"push", strings.Repeat(" ", 300<<10), ""},
		{"pull_request", `{"commits":[{"added":["a"]}]}`, ""},
	} {
		if got := strings.Join(changed(tgr.Event{Name: tt.name, Payload: []byte(tt.payload)}), " "); got != tt.want {
			t.Errorf("changed(%.60s) = %q, want %q", tt.payload, got, tt.want)
		}
	}
}
