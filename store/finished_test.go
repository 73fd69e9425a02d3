package store_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
)

// The log of finished jobs has each job once, in the order in which they ended, without those that plan.
func TestFinishedAfter(t *testing.T) { each(t, finishedAfter) }

func finishedAfter(t *testing.T, e *env) {
	run := e.planned("d", tgr.Job{Key: "a", Name: "a"}, tgr.Job{Key: "b", Name: "b"}, tgr.Job{Key: "c", Name: "c"})
	for _, key := range []string{"a", "b", "c"} {
		e.expand(run, key, 1, 0)
	}
	one, two := e.claim(tgr.WorkJob), e.claim(tgr.WorkJob)
	if got := finished(e, 0); len(got) != 0 {
		t.Fatalf("nothing has ended, and the log has %v", got)
	}
	e.finish(two, tgr.Success)
	e.finish(one, tgr.Failure)
	e.cancelAll(run)
	want := []string{two.Job.Key, one.Job.Key, "c"} // which did not end by itself, and is in the log all the same
	if diff := cmp.Diff(want, finished(e, 0)); diff != "" {
		t.Errorf("the log (-want +got):\n%s", diff)
	}
	all, err := e.FinishedAfter(e.ctx, 0, 1)
	e.must(err)
	if len(all) != 1 || all[0].Job.Conclusion != tgr.Success || all[0].Job.Status != tgr.Completed {
		t.Errorf("the first is %+v", all)
	}
	if diff := cmp.Diff(want[1:], finished(e, all[0].Seq)); diff != "" {
		t.Errorf("after the first (-want +got):\n%s", diff)
	}
}

func finished(e *env, after int64) []string {
	e.t.Helper()
	list, err := e.FinishedAfter(e.ctx, after, 0)
	e.must(err)
	keys := []string{}
	for _, f := range list {
		if f.Seq <= after {
			e.t.Errorf("%d comes after %d", f.Seq, after)
		}
		keys, after = append(keys, f.Job.Key), f.Seq
	}
	return keys
}
