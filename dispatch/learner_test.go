package dispatch

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/terraphim/tgr"
)

// knowing is a Learner that gives every job the same time.
type knowing struct {
	mu      sync.Mutex
	told    []tgr.JobID
	timeout time.Duration
}

// Finished implements Learner.
func (k *knowing) Finished(_ tgr.RunID, job tgr.JobID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.told = append(k.told, job)
}

// Timeout implements Learner.
func (k *knowing) Timeout(tgr.Run, tgr.Job) time.Duration { return k.timeout }

// The learner hears of every job, and gives a time-out to those alone whose workflow states none, and only to shorten it.
func TestLearner(t *testing.T) {
	k := &knowing{timeout: 300 * time.Millisecond}
	h := open(t, files{"ci.yml": `
on: push
jobs:
  none: {runs-on: x, steps: [{run: "sleep 30"}]}
  stated: {runs-on: x, timeout-minutes: 5, steps: [{run: "sleep 1"}]}
`}, nil, func(c *Config) { c.Learn = k })
	runs, jobs := h.push(nil)
	got := ends(runs, jobs)
	slices.Sort(got)
	if want := []string{"none timed_out", "stated success"}; !slices.Equal(got, want) {
		t.Errorf("jobs: %q, want %q", got, want)
	}
	if !h.log.has("learnt from earlier runs") {
		t.Error("the log of the job does not say where its time-out comes from")
	}
	k.mu.Lock()
	if len(k.told) != 2 {
		t.Errorf("told of %v, want two jobs", k.told)
	}
	k.timeout = 10 * 24 * time.Hour
	k.mu.Unlock()
}
