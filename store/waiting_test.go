package store_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/store"
)

// since is for how long each job of a run has waited for a machine or at its gate, as Settle's function sees it.
func (e *env) since(run tgr.RunID) map[string]time.Duration {
	e.t.Helper()
	out := map[string]time.Duration{}
	e.must(e.Settle(e.ctx, run, func(_ tgr.Run, jobs []tgr.Job) (store.Change, error) {
		for _, j := range jobs {
			if !j.Queued.IsZero() {
				out[j.Name] = e.clock.now().Sub(j.Queued)
			}
		}
		return store.Change{}, nil
	}))
	return out
}

func (e *env) waited(run tgr.RunID, want map[string]time.Duration) {
	e.t.Helper()
	if diff := cmp.Diff(want, e.since(run)); diff != "" {
		e.t.Errorf("waiting of run %d (-want +got):\n%s", run, diff)
	}
}

// Jobs wait for a machine from when they are queued, at a gate from when they come to it, and for neither while they, or
// their run, wait for something else.
func TestSinceWhenJobsWait(t *testing.T) {
	const hour = time.Hour
	each(t, func(t *testing.T, e *env) {
		run := e.planned("d", work("a"), work("gate"), work("later"))
		e.clock.add(hour)
		e.expand(run, "a", 1, 0)
		e.gate(run, "gate", "prod", "")
		e.clock.add(hour)
		e.waited(run, map[string]time.Duration{"a (0)": hour, "gate": hour})
		e.queue(run, "gate", e.clock.now().Add(3*hour)) // a wait of its environment
		e.waited(run, map[string]time.Duration{"a (0)": hour, "gate": -3 * hour})
		e.clock.add(5 * hour)
		l := e.claim()
		must(e.Release(e.ctx, l.Job.ID, l.Token, "no boot", true))
		e.clock.add(hour)
		e.waited(run, map[string]time.Duration{"a (0)": hour, "gate": 3 * hour})
	})
}

// A re-run whose group another run holds keeps its expanded jobs, which wait for machines when the group is theirs.
func TestSinceWhenJobsOfAGroupWait(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		run := e.grouped("1", tgr.Group{Name: "g"}, nil)
		e.start(run, tgr.Group{})
		e.finish(e.claim(), tgr.Failure)
		other := e.grouped("2", tgr.Group{Name: "g"}, nil)
		e.start(other, tgr.Group{})
		must(e.Rerun(e.ctx, run, store.Again{Failed: true}))
		e.clock.add(48 * time.Hour)
		e.finish(e.claim(), tgr.Success)
		e.clock.add(time.Hour)
		e.waited(run, map[string]time.Duration{"a": time.Hour})
	})
}

// A change may cancel its run, which keeps the first reason.
func TestSettleCancelsRun(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		run := e.planned("d", work("a"))
		for _, why := range []string{"too late", "too late again"} {
			e.must(e.Settle(e.ctx, run, func(tgr.Run, []tgr.Job) (store.Change, error) { return store.Change{CancelRun: why}, nil }))
			if r := must(e.Run(e.ctx, run)); r.CancelReason != "too late" || r.Status.Done() {
				t.Errorf("after %q: %s, to be cancelled as %q", why, r.Status, r.CancelReason)
			}
		}
		e.must(e.Settle(e.ctx, run, func(_ tgr.Run, jobs []tgr.Job) (store.Change, error) {
			return store.Change{Cancel: map[tgr.JobID]string{jobs[0].ID: "too late"}}, nil
		}))
		if r := must(e.Run(e.ctx, run)); r.Conclusion != tgr.Cancelled || r.Reason != "too late" {
			t.Errorf("the run is %s: %q", r.Conclusion, r.Reason)
		}
	})
}
