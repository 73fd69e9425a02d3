package store_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/store"
)

// TestMain makes the model take fewer walks than rapid's hundred, because SQLite is some twenty times slower under the
// race detector; -rapid.checks asks for more.
// modelJob is a job as the model has it: what a stranger would expect of a queue with leases.
type modelJob struct {
	id         tgr.JobID
	key        string
	status     tgr.Status
	conclusion tgr.Conclusion
	tries      int
	token      string
	until      time.Time
	cancel     bool
	parallel   int
	notBefore  time.Time
}

func (m *modelJob) end(c tgr.Conclusion) { m.status, m.conclusion, m.token = tgr.Completed, c, "" }

func (m *modelJob) lost(now time.Time) {
	switch {
	case m.cancel:
		m.end(tgr.Cancelled)
	case m.tries >= store.MaxTries:
		m.end(tgr.Failure)
	default:
		m.status, m.token, m.notBefore = tgr.Queued, "", now.Add(time.Second<<(m.tries-1))
	}
}

// model is one run of jobs without needs, and the tokens that were ever given out.
type model struct {
	e      *env
	t      *rapid.T
	name   string
	run    tgr.RunID
	jobs   []*modelJob
	tokens []string
}

// claimable finds the job that a claim must yield: the one queued longest, here the one with the lowest place in
// the queue; nil where none may start.
func (m *model) claimable(order func(a, b *modelJob) int) *modelJob {
	var best *modelJob
	for _, j := range m.jobs {
		running := 0
		for _, o := range m.jobs {
			if o.key == j.key && o.status == tgr.InProgress {
				running++
			}
		}
		if j.status == tgr.Queued && !j.notBefore.After(m.e.clock.now()) && (j.parallel == 0 || running < j.parallel) && (best == nil || order(j, best) < 0) {
			best = j
		}
	}
	return best
}

func (m *model) any(t *rapid.T) *modelJob { return rapid.SampledFrom(m.jobs).Draw(t, "job") }

func (m *model) token(t *rapid.T, j *modelJob) string {
	return rapid.SampledFrom(append([]string{j.token, "", "made up"}, m.tokens...)).Draw(t, "token")
}

// agree fails where a fenced operation succeeded without the lease, or failed with it.
func (m *model) agree(op string, held bool, err error) {
	if held && err != nil || !held && tgr.CodeOf(err) != tgr.Conflict {
		m.t.Fatalf("%s with the lease: %v; error: %v", op, held, err)
	}
}

// Model and store go through the same operations and must agree after each.
func TestModel(t *testing.T) {
	eachFresh(t, func(t *testing.T, e *env) {
		e.open(store.Config{})
		n := 0
		rapid.Check(t, func(rt *rapid.T) {
			n++
			m := &model{e: e, t: rt, name: fmt.Sprint("delivery ", n)}
			defer m.clear()
			m.begin(rt)
			queued := map[tgr.JobID]int{} // place in the queue
			for i, j := range m.jobs {
				queued[j.id] = i
			}
			m.actions(rt, queued)
		})
	})
}

// begin plans a run of two matrix jobs.
func (m *model) begin(t *rapid.T) {
	m.run = m.e.planned(m.name, work("a"), work("b"))
	for _, key := range []string{"a", "b"} {
		n, parallel := rapid.IntRange(1, 4).Draw(t, "instances"), rapid.IntRange(0, 3).Draw(t, "parallel")
		m.e.expand(m.run, key, n, parallel)
		for _, j := range byKey(must(m.e.Jobs(m.e.ctx, m.run, 1)), key) {
			m.jobs = append(m.jobs, &modelJob{id: j.ID, key: key, status: tgr.Queued, parallel: parallel})
		}
	}
}

func (m *model) actions(t *rapid.T, queued map[tgr.JobID]int) {
	e, last := m.e, len(m.jobs)
	order := func(a, b *modelJob) int { return queued[a.id] - queued[b.id] }
	requeue := func(j *modelJob) {
		if j.lost(e.clock.now()); j.status == tgr.Queued {
			last++
			queued[j.id] = last
		}
	}
	tick := func() { e.clock.add(time.Nanosecond) } // no two changes at the same moment
	t.Repeat(map[string]func(*rapid.T){
		"claim": func(t *rapid.T) {
			want := m.claimable(order)
			l, err := e.Claim(e.ctx, store.ClaimRequest{Owner: "w", Lease: time.Minute})
			if want == nil {
				if !errors.Is(err, store.ErrNothing) {
					t.Fatalf("Claim = %+v, %v; want ErrNothing", l, err)
				}
				return
			}
			if err != nil || l.Job.ID != want.id || slices.Contains(m.tokens, l.Token) {
				t.Fatalf("Claim = %+v, %v; want job %d and a new token", l, err, want.id)
			}
			want.status, want.token, want.until = tgr.InProgress, l.Token, e.clock.now().Add(time.Minute)
			want.tries++
			m.tokens = append(m.tokens, l.Token)
		},
		"beat": func(t *rapid.T) {
			j := m.any(t)
			token := m.token(t, j)
			held := j.status == tgr.InProgress && token == j.token
			cancel, _, err := e.Beat(e.ctx, j.id, token, time.Minute)
			if m.agree("Beat", held, err); held {
				j.until = e.clock.now().Add(time.Minute)
				if cancel != j.cancel {
					t.Fatalf("Beat says cancel: %v; want %v", cancel, j.cancel)
				}
			}
		},
		"finish": func(t *rapid.T) {
			j := m.any(t)
			token := m.token(t, j)
			held := j.status == tgr.InProgress && token == j.token
			c := rapid.SampledFrom([]tgr.Conclusion{tgr.Success, tgr.Failure, tgr.Cancelled, tgr.TimedOut}).Draw(t, "conclusion")
			if m.agree("Finish", held, e.Finish(e.ctx, j.id, token, store.JobResult{Conclusion: c})); held {
				j.end(c)
			}
		},
		"release": func(t *rapid.T) {
			j := m.any(t)
			token := m.token(t, j)
			held := j.status == tgr.InProgress && token == j.token
			tick()
			_, err := e.Release(e.ctx, j.id, token, "no boot", false)
			if m.agree("Release", held, err); held {
				requeue(j)
			}
		},
		"expire": func(t *rapid.T) {
			e.clock.add(time.Duration(rapid.IntRange(0, 90).Draw(t, "seconds")) * time.Second)
			if _, err := e.Expire(e.ctx); err != nil {
				t.Fatal(err)
			}
			for _, j := range m.jobs { // by id, as the store does it: they share a moment
				if j.status == tgr.InProgress && j.until.Before(e.clock.now()) {
					requeue(j)
				}
			}
			tick()
		},
		"cancel": func(t *rapid.T) {
			if rapid.IntRange(0, 4).Draw(t, "rarely") > 0 {
				return
			}
			j := m.any(t)
			if err := e.CancelRun(e.ctx, m.run, j.id, "", "x"); (err == nil) == (j.status == tgr.Completed) {
				t.Fatalf("CancelRun of a job that is %s: %v", j.status, err)
			}
			switch j.status {
			case tgr.Queued:
				j.end(tgr.Cancelled)
			case tgr.InProgress:
				j.cancel = true
			}
		},
		"": m.check,
	})
}

// clear leaves nothing to claim to the next model.
func (m *model) clear() {
	if r := must(m.e.Run(m.e.ctx, m.run)); !r.Status.Done() {
		m.e.cancelAll(m.run)
		must(m.e.OwnerGone(m.e.ctx, "w"))
	}
}

// check compares all jobs, and the run with the fold of them.
func (m *model) check(t *rapid.T) {
	var out []tgr.Outcome
	jobs := must(m.e.Jobs(m.e.ctx, m.run, 1))
	for i, j := range m.jobs {
		got := jobs[i]
		if got.ID != j.id || got.Status != j.status || got.Conclusion != j.conclusion || got.Tries != j.tries {
			t.Fatalf("job %d is %s (%s) after %d tries; want %s (%s) after %d", j.id, got.Status, got.Conclusion, got.Tries, j.status, j.conclusion, j.tries)
		}
		out = append(out, tgr.Outcome{Status: j.status, Conclusion: j.conclusion})
	}
	status, conclusion := tgr.Fold(out)
	if r, err := m.e.Run(m.e.ctx, m.run); err != nil || r.Status != status || r.Conclusion != conclusion {
		t.Fatalf("run is %s (%s), %v; want %s (%s)", r.Status, r.Conclusion, err, status, conclusion)
	}
}
