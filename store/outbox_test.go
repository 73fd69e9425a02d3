package store_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/store"
)

// waiting shows the reports that are due as "key v version body remote tries".
func (e *env) waiting(in time.Duration) []string {
	e.t.Helper()
	list, err := e.NextReports(e.ctx, e.clock.now().Add(in), 100)
	e.must(err)
	out := []string{}
	for _, r := range list {
		out = append(out, fmt.Sprintf("%s v%d %s remote=%s tries=%d %s", r.Key, r.Version, r.Body, r.RemoteID, r.Tries, r.Reason))
	}
	return out
}

func (e *env) due(in time.Duration, want ...string) {
	e.t.Helper()
	if want == nil {
		want = []string{}
	}
	if d := cmp.Diff(want, e.waiting(in)); d != "" {
		e.t.Fatalf("due in %v (-want +got):\n%s", in, d)
	}
}

func TestOutbox(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		now := e.clock.now()
		e.must(e.Report(e.ctx, "a", now.Add(time.Second), []byte("one")))
		e.due(0)
		e.due(time.Second, "a v1 one remote= tries=0 ")
		e.must(e.Report(e.ctx, "a", now.Add(time.Hour), []byte("two")))
		e.due(time.Second, "a v2 two remote= tries=0 ") // the earlier time holds

		for key, want := range map[string]string{"a": "", "nowhere": ""} {
			if id, err := e.RemoteID(e.ctx, key); err != nil || id != want {
				t.Errorf("RemoteID(%q) = %q, %v", key, id, err)
			}
		}
		e.must(e.ReportDone(e.ctx, "a", 1, "r1"))
		if id, err := e.RemoteID(e.ctx, "a"); err != nil || id != "r1" {
			t.Errorf("RemoteID = %q, %v", id, err)
		}
		e.due(time.Second, "a v2 two remote=r1 tries=0 ")
		e.must(e.ReportDone(e.ctx, "a", 2, ""))
		e.due(time.Hour)
		e.must(e.ReportDone(e.ctx, "a", 1, "")) // late: changes nothing
		e.due(time.Hour)

		e.must(e.Report(e.ctx, "a", now, []byte("three")))
		e.due(0, "a v3 three remote=r1 tries=0 ")
		e.must(e.ReportRetry(e.ctx, "a", 3, now.Add(time.Minute), "rate limit"))
		e.due(0)
		e.must(e.Report(e.ctx, "a", now, []byte("four")))
		e.due(59 * time.Second) // a new body does not break the back-off
		e.due(time.Minute, "a v4 four remote=r1 tries=1 rate limit")
		if n, oldest, err := e.ReportsWaiting(e.ctx); err != nil || n != 1 || !oldest.Equal(now.Add(time.Minute)) {
			t.Errorf("ReportsWaiting = %d, %v, %v", n, oldest, err)
		}
		e.must(e.ReportDrop(e.ctx, "a", 4, "gone"))
		e.due(time.Hour)

		e.code(e.ReportDone(e.ctx, "a", 5, ""), tgr.NotFound)
		e.code(e.ReportRetry(e.ctx, "none", 1, now, ""), tgr.NotFound)
		e.code(e.Report(e.ctx, "", now, nil), tgr.Invalid)
		e.must(e.Report(e.ctx, "empty", now, nil))
		e.due(0, "empty v1  remote= tries=0 ")
	})
}

// Every change of a status is reported in its own transaction.
func TestReportsHook(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		e.hooks = func(run tgr.Run, jobs []tgr.Job) []store.Outgoing {
			body := string(run.Status)
			for _, j := range jobs {
				body += " " + j.Key + "=" + string(j.Status)
			}
			return []store.Outgoing{{Key: run.ID.String(), Body: []byte(body)}}
		}
		step := 0
		shows := func(want string) {
			t.Helper()
			step++
			e.due(0, fmt.Sprintf("1 v%d %s remote= tries=0 ", step, want))
		}
		run := e.accept("d")
		shows("queued")
		l := e.claim()
		e.due(0, "1 v1 queued remote= tries=0 ") // the same again is no news
		_, err := e.Planned(e.ctx, l.Job.ID, l.Token, store.Planned{Runs: []store.PlannedRun{{WorkflowFile: "f", Jobs: []tgr.Job{work("a")}}}})
		e.must(err)
		shows("queued a=pending")
		e.expand(run, "a", 1, 0)
		shows("queued a=queued")
		l = e.claim()
		shows("in_progress a=in_progress")
		e.must(e.UpdateSteps(e.ctx, l.Job.ID, l.Token, []tgr.Step{{Number: 1, Status: tgr.InProgress}}))
		e.must(e.Settle(e.ctx, run, func(tgr.Run, []tgr.Job) (store.Change, error) { return store.Change{}, nil }))
		_, err = e.Release(e.ctx, l.Job.ID, l.Token, "no boot", false)
		e.must(err)
		e.clock.add(time.Second)
		shows("queued a=queued")
		e.finish(e.claim(), tgr.Success)
		step++ // of the claim
		shows("completed a=completed")
		more := e.hooks
		e.hooks = func(run tgr.Run, jobs []tgr.Job) []store.Outgoing {
			out := more(run, jobs)
			out[0].Body = append(out[0].Body, " explained"...)
			return out
		}
		e.must(e.Refresh(e.ctx, run))
		shows("completed a=completed explained")
		e.code(e.Refresh(e.ctx, run+1), tgr.NotFound)
	})
}
