package store_test

import (
	"testing"
	"time"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/store"
)

// A server that starts again takes back the lease of a job that goes on, and gives back the others of its name.
func TestRetake(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		run := e.planned("d", work("a"), work("b"))
		e.expand(run, "a", 1, 0)
		e.expand(run, "b", 1, 0)
		goes, ends := e.claim(), e.claim()
		got, err := e.Retake(e.ctx, goes.Job.ID, "node-1", goes.Token, time.Minute)
		if err != nil || got.Job.ID != goes.Job.ID || got.Run.ID != run || got.Token != goes.Token || len(got.Run.Plan) == 0 {
			t.Fatalf("retake = %+v, %v", got, err)
		}
		back := must(e.OwnerGone(e.ctx, "node-1", goes.Job.ID))
		if len(back) != 1 || back[0].ID != ends.Job.ID {
			t.Errorf("given back: %+v; want only job %d", back, ends.Job.ID)
		}
		for name, bad := range map[string]struct {
			job          tgr.JobID
			owner, token string
			code         tgr.Code
		}{
			"another's":     {goes.Job.ID, "node-2", goes.Token, tgr.Conflict},
			"a stale token": {goes.Job.ID, "node-1", "stale", tgr.Conflict},
			"not held":      {ends.Job.ID, "node-1", ends.Token, tgr.Conflict},
			"no token":      {goes.Job.ID, "node-1", "", tgr.Invalid},
			"no such job":   {999, "node-1", goes.Token, tgr.NotFound},
		} {
			if _, err := e.Retake(e.ctx, bad.job, bad.owner, bad.token, time.Minute); tgr.CodeOf(err) != bad.code {
				t.Errorf("%s: %v; want %s", name, err, bad.code)
			}
		}
		e.must(e.Finish(e.ctx, goes.Job.ID, goes.Token, store.JobResult{Conclusion: tgr.Success}))
	})
}
