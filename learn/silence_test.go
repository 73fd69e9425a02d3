package learn

import (
	"fmt"
	"testing"
	"time"

	"github.com/terraphim/tgr"
)

// Advice that is not sure is not given: each history is nearly one that would earn a suggestion of the kind.
func TestNothingIsSuggested(t *testing.T) {
	ok := tgr.Event{}
	needs := func(change func(*Record)) func(*Record) {
		return func(r *Record) {
			r.Job.Needs = []string{"build"}
			if change != nil {
				change(r)
			}
		}
	}
	for _, tt := range []struct {
		name, kind string
		times      int
		tell       func(h *history, i int)
	}{
		{"the job that is waited for gives outputs", tgr.SuggestParallelise, 40, func(h *history, _ int) {
			h.job("build", ok, func(r *Record) { r.Job.Outputs = map[string]string{"v": "1"} }, did{run: "make", took: 5 * time.Minute})
			h.job("test", ok, needs(nil), did{run: "make test", took: 5 * time.Minute})
		}},
		{"the job that is waited for fails at times", tgr.SuggestParallelise, 40, func(h *history, i int) {
			h.job("build", ok, nil, did{run: "make", took: 5 * time.Minute, exit: (i % 10) / 9})
			h.job("test", ok, needs(nil), did{run: "make test", took: 5 * time.Minute})
		}},
		{"the wait is short", tgr.SuggestParallelise, 40, func(h *history, _ int) {
			h.job("build", ok, nil, did{run: "make", took: 30 * time.Second})
			h.job("test", ok, needs(nil), did{run: "make test", took: 5 * time.Minute})
		}},
		{"the job that is waited for is of another workflow", tgr.SuggestParallelise, 40, func(h *history, _ int) {
			h.job("build", ok, func(r *Record) { r.Run.WorkflowFile = "other.yml" }, did{run: "make", took: 5 * time.Minute})
			h.job("test", ok, needs(nil), did{run: "make test", took: 5 * time.Minute})
		}},
		{"it is quick", tgr.SuggestCache, 40, func(h *history, _ int) {
			h.job("t", ok, nil, did{run: "npm ci", took: 5 * time.Second})
		}},
		{"it has a cache", tgr.SuggestCache, 40, func(h *history, _ int) {
			h.job("t", ok, nil, did{run: "uses actions/cache@v4"}, did{run: "npm ci", took: time.Minute})
		}},
		{"the cache made it slower", tgr.SuggestCache, 20, func(h *history, _ int) {
			h.job("a", ok, nil, did{run: "npm ci", took: 30 * time.Second})
			h.job("b", ok, nil, did{run: "uses actions/cache@v4"}, did{run: "npm ci", took: 40 * time.Second})
		}},
		{"nothing is known that it could keep", tgr.SuggestCache, 40, func(h *history, _ int) {
			h.job("t", ok, nil, did{run: "./slow.sh", took: 5 * time.Minute})
		}},
		{"it never hung", tgr.SuggestTimeout, 40, func(h *history, i int) {
			h.job("t", ok, nil, did{run: "make test", took: time.Minute, exit: i % 2})
		}},
		{"it hung, and too little is known of its successes", tgr.SuggestTimeout, 7, func(h *history, _ int) {
			h.job("t", ok, nil, did{run: "make test", took: time.Minute})
			h.job("t", ok, func(r *Record) { r.Job.Conclusion, r.Job.Steps[0].Conclusion = tgr.TimedOut, tgr.TimedOut }, did{run: "make test", took: 6 * time.Hour, exit: 1})
		}},
		{"one step takes nearly all", tgr.SuggestSplit, 20, func(h *history, _ int) {
			h.job("t", ok, nil, did{run: "npm ci", took: 3 * time.Minute}, did{run: "npm test", took: 30 * time.Minute})
		}},
		{"the job is short", tgr.SuggestSplit, 20, func(h *history, _ int) {
			h.job("t", ok, nil, did{run: "make lint", took: 4 * time.Minute}, did{run: "make test", took: 4 * time.Minute})
		}},
		{"slower by less than anybody waits for", tgr.SuggestSlower, 40, func(h *history, i int) {
			h.job("t", ok, nil, did{run: "make", took: time.Second * time.Duration(1+i/32)})
		}},
		{"slower once", tgr.SuggestSlower, 40, func(h *history, i int) {
			h.job("t", ok, nil, did{run: "make", took: time.Minute * time.Duration(1+i/39*5)})
		}},
		{"it fails half of the time", tgr.SuggestAvoid, 40, func(h *history, i int) {
			h.job("t", ok, nil, did{run: "make", took: time.Second, exit: i % 2})
		}},
		{"it failed seven times of seven", tgr.SuggestAvoid, 7, func(h *history, _ int) {
			h.job("t", ok, nil, did{run: "make", took: time.Second, exit: 1})
		}},
		{"both do equally well", tgr.SuggestAlternative, 40, func(h *history, _ int) {
			h.job("a", ok, nil, did{run: "npm install", took: time.Second})
			h.job("b", ok, nil, did{run: "npm ci", took: time.Second})
		}},
		{"the other one does something else", tgr.SuggestAlternative, 40, func(h *history, i int) {
			h.job("a", ok, nil, did{run: "npm test", took: time.Second, exit: i % 2})
			h.job("b", ok, nil, did{run: "npm ci", took: time.Second})
		}},
		{"too little is known of the other one", tgr.SuggestAlternative, 40, func(h *history, i int) {
			h.job("a", ok, nil, did{run: "npm install", took: time.Second, exit: i % 2})
			if i < 7 {
				h.job("b", ok, nil, did{run: "npm ci", took: time.Second})
			}
		}},
		{"killed twice", tgr.SuggestMemory, 40, func(h *history, i int) {
			h.job("t", ok, nil, did{run: "make", took: time.Second, exit: map[int]int{3: 137, 9: 137}[i]})
		}},
		{"it failed and passed once on one commit, which may have been an outage", tgr.SuggestQuarantine, 40, func(h *history, i int) {
			h.job("t", tgr.Event{SHA: fmt.Sprint("c", i)}, nil, did{run: "make", took: time.Second, exit: map[int]int{20: 1}[i]})
			if i == 20 {
				h.job("t", tgr.Event{SHA: "c20"}, nil, did{run: "make", took: time.Second})
			}
		}},
	} {
		t.Run(tt.kind+": "+tt.name, func(t *testing.T) {
			h := newHistory()
			for i := range tt.times {
				tt.tell(h, i)
			}
			if got := h.kinds(t, tt.kind); len(got) != 0 {
				t.Errorf("it is suggested: %+v", got)
			}
		})
	}
}

// What matters most comes first: what is sure before what is not, failures before minutes that nobody has measured.
func TestOrderOfSuggestions(t *testing.T) {
	h := newHistory()
	for i := range 24 {
		sha := fmt.Sprint("c", i)
		h.job("flaky", tgr.Event{SHA: sha}, nil, did{run: "make test", took: time.Second, exit: (i % 4) / 3})
		h.job("flaky", tgr.Event{SHA: sha}, nil, did{run: "make test", took: time.Second})
		h.job("install", tgr.Event{SHA: sha}, nil, did{run: "npm ci", took: 40 * time.Second})
	}
	var kinds []string
	for _, s := range h.sp.suggestions() {
		kinds = append(kinds, s.Kind)
	}
	if len(kinds) < 2 || kinds[0] != tgr.SuggestQuarantine || kinds[len(kinds)-1] != tgr.SuggestCache {
		t.Errorf("in the order %v", kinds)
	}
	for i := range 24 {
		h.job("cached", tgr.Event{SHA: fmt.Sprint("d", i)}, nil, did{run: "uses actions/cache@v4"}, did{run: "npm ci", took: time.Second})
	}
	if s := h.kinds(t, tgr.SuggestCache); len(s) != 1 || s[0].Saves != 39*time.Second || s[0].Confidence != 0.9 {
		t.Errorf("seen both ways: %+v", s)
	}
}
