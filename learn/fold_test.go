package learn

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
)

func pushOf(branch, sha string, files ...string) tgr.Event {
	data, err := json.Marshal(map[string]any{"commits": []any{map[string]any{"modified": files}}})
	if err != nil {
		panic(err) // strings: cannot be
	}
	return tgr.Event{Name: "push", Ref: "refs/heads/" + branch, SHA: sha, Payload: data}
}

// Who is credited with a mend: the push after which the same job of the same branch was green, if it changed anything and the job is
// not flaky.
func TestFixCredit(t *testing.T) {
	fail := did{run: "npm test", took: time.Second, exit: 1, logs: "error: the ledger is broken"}
	pass := did{run: "npm test", took: time.Second}
	for name, tt := range map[string]struct {
		tell func(h *history)
		want string // "": nobody
	}{
		"the push": {func(h *history) {
			h.job("t", pushOf("main", "1", "x.js"), nil, fail)
			h.job("t", pushOf("main", "2", "ledger.js"), nil, pass)
		}, "ledger.js"},
		"after failures in between": {func(h *history) {
			h.job("t", pushOf("main", "1", "x.js"), nil, fail)
			h.job("t", pushOf("main", "2", "y.js"), nil, fail)
			h.job("t", pushOf("main", "3", "ledger.js"), nil, pass)
		}, "ledger.js"},
		"once": {func(h *history) {
			h.job("t", pushOf("main", "1", "x.js"), nil, fail)
			h.job("t", pushOf("main", "2", "ledger.js"), nil, pass)
			h.job("t", pushOf("main", "3", "other.js"), nil, pass)
		}, "ledger.js"},
		"the same commit": {func(h *history) {
			h.job("t", pushOf("main", "1", "x.js"), nil, fail)
			h.job("t", pushOf("main", "1", "x.js"), nil, pass)
		}, ""},
		"another branch": {func(h *history) {
			h.job("t", pushOf("main", "1", "x.js"), nil, fail)
			h.job("t", pushOf("feature", "2", "ledger.js"), nil, pass)
		}, ""},
		"another job": {func(h *history) {
			h.job("t", pushOf("main", "1", "x.js"), nil, fail)
			h.job("lint", pushOf("main", "2", "ledger.js"), nil, pass)
		}, ""},
		"an event that says nothing of files": {func(h *history) {
			h.job("t", pushOf("main", "1", "x.js"), nil, fail)
			h.job("t", tgr.Event{Name: "workflow_dispatch", Ref: "refs/heads/main"}, nil, pass)
		}, ""},
		"a flaky job": {func(h *history) {
			for i := range 3 {
				h.job("t", pushOf("main", fmt.Sprint("f", i), "x.js"), nil, fail)
				h.job("t", pushOf("main", fmt.Sprint("f", i), "x.js"), nil, pass)
			}
			h.job("t", pushOf("main", "8", "x.js"), nil, fail)
			h.job("t", pushOf("main", "9", "ledger.js"), nil, pass)
		}, ""},
	} {
		h := newHistory()
		tt.tell(h)
		got := ""
		for _, f := range h.sp.failures()[0].Fixes {
			got += f.To
		}
		if got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

// A command follows the one before it, if that succeeded: not itself, and nothing across a failure.
func TestCommandsFollow(t *testing.T) {
	step := func(run string, exit int) did { return did{run: run, took: time.Second, exit: exit} }
	h := newHistory()
	h.job("t", tgr.Event{}, nil, step("npm ci", 0), step("echo done", 0), step("npm test", 0), step("npm test", 0), step("make check", 1), step("make dist", 0))
	var got []string
	for _, key := range slices.Sorted(maps.Keys(h.sp.edges)) {
		if parts := strings.Split(key, "\x1e"); parts[0] == edgeThen {
			e := h.sp.edges[key]
			got = append(got, fmt.Sprintf("%s > %s: %v %v", parts[1], parts[2], e.OK, e.Bad))
		}
	}
	want := []string{"echo > npm test: 1 0", "npm ci > echo: 1 0", "npm test > make check: 0 1"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// What is learnt of which step: by id or name, the second of a name by its number, each combination of a matrix by itself; the
// server's own steps and those that did not run teach nothing.
func TestKeys(t *testing.T) {
	h := newHistory()
	h.job("test", tgr.Event{}, func(r *Record) {
		r.Job.Total, r.Job.Name = 2, "test (1.22, linux)"
		at := func(i int) *tgr.Step { return &r.Job.Steps[i] }
		at(0).ID = "__setup"
		at(1).ID = "given"
		at(4).Started = time.Time{}
		at(5).Conclusion = tgr.Skipped
		at(6).Conclusion, at(6).Outcome = tgr.Success, tgr.Failure // continue-on-error
	}, did{run: "setup"}, did{run: "a"}, did{run: "twice"}, did{run: "twice"}, did{run: "never"}, did{run: "skipped"}, did{run: "may fail"})
	var got []string
	for _, key := range slices.Sorted(maps.Keys(h.sp.units)) {
		if u := h.sp.units[key]; u.Own.N > 0 {
			got = append(got, fmt.Sprintf("%s %.0f/%d", strings.ReplaceAll(key, sep, " | "), u.Own.S, u.Own.N))
		}
	}
	want := []string{" 1/1", "ci.yml 1/1", "ci.yml | test (1.22, linux) 1/1", "ci.yml | test (1.22, linux) | given 1/1", "ci.yml | test (1.22, linux) | may fail 0/1",
		"ci.yml | test (1.22, linux) | twice 1/1", "ci.yml | test (1.22, linux) | twice #2 1/1"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// Failures that look the same are one, whatever differs from run to run in their lines; a line that successes print as often tells
// nothing; a failure without lines is known by its command.
func TestClusters(t *testing.T) {
	h := newHistory()
	fail := func(run, logs string) {
		h.job("t", tgr.Event{}, nil, did{run: run, took: time.Second, exit: 2, logs: logs})
	}
	for i := range 5 {
		fail("npm test", fmt.Sprintf("12:00:0%d error: cannot open /tmp/build-%x%x/cache.db (attempt %d)\nwarning: errors are retried", i, i*77777, i*31337, i))
		h.job("t", tgr.Event{}, nil, did{run: "npm test", took: time.Second, logs: "warning: errors are retried"})
		fail("npm test", fmt.Sprintf("error: the socket was closed after %d ms", i*100))
		fail("make", "")
		fail("make", "")
	}
	var got []string
	for _, c := range h.sp.failures() {
		got = append(got, fmt.Sprintf("%d %s", c.N, c.Sample))
	}
	want := []string{"10 make: exit status 1 to 128", "5 error: cannot open <dir>/cache.db (attempt <n>)", "5 error: the socket was closed after <n> ms"}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	var lessons []string
	for _, l := range h.sp.lessons() {
		lessons = append(lessons, fmt.Sprintf("%s %d", l.Command, l.N))
	}
	slices.Sort(lessons)
	if diff := cmp.Diff([]string{"make 10", "npm test 5", "npm test 5"}, lessons); diff != "" {
		t.Errorf("lessons: %s", diff)
	}
}

// Forks have a quarter of the room of a repository, and no more however much they run.
func TestRoomOfForks(t *testing.T) {
	sp := newSpace("o/r", true)
	base := NewTrace(TraceConfig{Seed: 1, Commits: 1, Jobs: 1}).Records[0]
	for i := range maxUnits / 2 {
		r := base
		r.Seq = int64(i + 1)
		r.Job.Key = fmt.Sprint("job", i)
		sp.fold(r)
	}
	if len(sp.units) > maxUnits/4 || len(sp.units) < maxUnits/5 || sp.drain.limit != maxTemplates/4 {
		t.Errorf("%d units, room for %d", len(sp.units), maxUnits/4)
	}
	if sp.units[""] == nil || sp.units[keyOf("ci.yml", fmt.Sprint("job", maxUnits/2-1))] == nil {
		t.Error("what was seen last is gone")
	}
}

// Changed files are read of pushes, bounded, and a payload that is none costs nothing.
func FuzzChanged(f *testing.F) {
	f.Add(`{"commits":[{"added":["a/b/c/d","/etc/passwd","../x"],"removed":["\u001b[2J"]}]}`)
	f.Add(`{"commits":[{"added":"x"}]}`)
	f.Add(`{"commits":[null,{"modified":[null,""]}]}`)
	f.Fuzz(func(t *testing.T, payload string) {
		got := changed(tgr.Event{Name: "push", Payload: []byte(payload)})
		if len(got) > 20 || !slices.IsSorted(got) {
			t.Fatalf("%d files: %q", len(got), got)
		}
		for _, name := range got {
			if len(name) > 120 || strings.ContainsAny(name, "\x1b\x1e\x1f\n\x00") {
				t.Fatalf("the file %q", name)
			}
		}
	})
}
