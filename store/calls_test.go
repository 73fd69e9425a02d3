package store_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/store"
)

// call expands the pending call key into n instances, which are queued unless they have a group, and begins those.
func (e *env) call(run tgr.RunID, key string, n int, group string, callee ...tgr.Job) {
	e.t.Helper()
	e.must(e.Settle(e.ctx, run, func(_ tgr.Run, jobs []tgr.Job) (store.Change, error) {
		var x store.Expansion
		for i := range n {
			x.Jobs = append(x.Jobs, tgr.Job{Name: fmt.Sprintf("%s %d", key, i), Index: i, Total: n, Instance: json.RawMessage(`{}`), Group: tgr.Group{Name: group}})
		}
		return store.Change{Expand: map[tgr.JobID]store.Expansion{byKey(jobs, key)[0].ID: x}}, nil
	}))
	e.begin(run, callee...)
}

// begin begins the calls that are queued.
func (e *env) begin(run tgr.RunID, callee ...tgr.Job) {
	e.t.Helper()
	e.must(e.Settle(e.ctx, run, func(_ tgr.Run, jobs []tgr.Job) (store.Change, error) {
		c := store.Change{Begin: map[tgr.JobID][]tgr.Job{}}
		for _, j := range jobs {
			if j.Kind != tgr.CallJob || j.Status != tgr.Queued {
				continue
			}
			path := j.Key + "/"
			if j.Total > 1 {
				path = fmt.Sprintf("%s[%d]/", j.Key, j.Index)
			}
			c.Begin[j.ID] = []tgr.Job{}
			for _, k := range callee {
				k.Key, k.Name = path+k.Key, path+k.Key
				for i := range k.Needs {
					k.Needs = slices.Clone(k.Needs)
					k.Needs[i] = path + k.Needs[i]
				}
				c.Begin[j.ID] = append(c.Begin[j.ID], k)
			}
		}
		return c, nil
	}))
}

// end completes calls whose jobs are done, and queues what is pending below a call.
func (e *env) end(run tgr.RunID, id tgr.JobID, c tgr.Conclusion) {
	e.t.Helper()
	e.must(e.Settle(e.ctx, run, func(tgr.Run, []tgr.Job) (store.Change, error) {
		return store.Change{End: map[tgr.JobID]store.JobResult{id: {Conclusion: c, Outputs: map[string]string{"from": "call"}}}}, nil
	}))
}

func (e *env) job(run tgr.RunID, name string) tgr.Job {
	e.t.Helper()
	jobs := must(e.Jobs(e.ctx, run, 0))
	i := slices.IndexFunc(jobs, func(j tgr.Job) bool { return j.Name == name })
	if i < 0 {
		e.t.Fatalf("run %d has no job %s: %v", run, name, e.shape(run))
	}
	return jobs[i]
}

func caller(key string, needs ...string) tgr.Job {
	return tgr.Job{Key: key, Name: key, Needs: needs, Kind: tgr.CallJob, Uses: "./.github/workflows/x.yml"}
}

// A call takes no machine, is in progress while its jobs are there, and does not expire.
func TestCall(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		run := e.planned("d", caller("call"), work("after", "call"))
		e.call(run, "call", 2, "", work("a"), work("b", "a"))
		e.nothing()
		e.looks(run, "run #1.1: in_progress", "after: pending", "call 0: in_progress", "call 1: in_progress",
			"call[0]/a: pending", "call[0]/b: pending", "call[1]/a: pending", "call[1]/b: pending")
		e.clock.add(time.Hour)
		if jobs, err := e.Expire(e.ctx); err != nil || len(jobs) > 0 {
			t.Errorf("Expire = %v, %v; a call has no lease", jobs, err)
		}
		if jobs := must(e.OwnerGone(e.ctx, "node-1")); len(jobs) > 0 {
			t.Errorf("OwnerGone = %v", jobs)
		}
		if d := must(e.QueueDepth(e.ctx)); d.InProgress != 0 || d.Queued != 0 {
			t.Errorf("depth = %+v; a call is no work", d)
		}
		call := e.job(run, "call 1")
		if call.Uses == "" || call.Started.IsZero() || !slices.Equal(e.job(run, "call[1]/b").Needs, []string{"call[1]/a"}) {
			t.Errorf("call %+v", call)
		}
		// Cancelling a call cancels its jobs; Settle then ends it.
		e.must(e.CancelRun(e.ctx, run, call.ID, "", "ada"))
		e.end(run, call.ID, tgr.Cancelled)
		e.looks(run, "run #1.1: in_progress", "after: pending", "call 0: in_progress", "call 1: completed (cancelled)",
			"call[0]/a: pending", "call[0]/b: pending", "call[1]/a: completed (cancelled)", "call[1]/b: completed (cancelled)")
		if got := e.job(run, "call 1"); got.Outputs["from"] != "call" || got.Finished.IsZero() {
			t.Errorf("the call that ended: %+v", got)
		}
		e.cancelAll(run)
		e.end(run, e.job(run, "call 0").ID, tgr.Cancelled)
		e.looks(run, "run #1.1: completed (cancelled)", "after: completed (cancelled)", "call 0: completed (cancelled)", "call 1: completed (cancelled)",
			"call[0]/a: completed (cancelled)", "call[0]/b: completed (cancelled)", "call[1]/a: completed (cancelled)", "call[1]/b: completed (cancelled)")
	})
}

func TestCallRefuses(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		run := e.planned("d", caller("call"), work("job"))
		e.expand(run, "job", 1, 0)
		for name, change := range map[string]func(jobs []tgr.Job) store.Change{
			"begin what is not a call": func(jobs []tgr.Job) store.Change {
				return store.Change{Begin: map[tgr.JobID][]tgr.Job{byKey(jobs, "job")[0].ID: {}}}
			},
			"begin what is not expanded": func(jobs []tgr.Job) store.Change {
				return store.Change{Begin: map[tgr.JobID][]tgr.Job{byKey(jobs, "call")[0].ID: {}}}
			},
			"end without a conclusion": func(jobs []tgr.Job) store.Change {
				return store.Change{End: map[tgr.JobID]store.JobResult{byKey(jobs, "call")[0].ID: {}}}
			},
		} {
			before := e.shape(run)
			if err := e.Settle(e.ctx, run, func(_ tgr.Run, jobs []tgr.Job) (store.Change, error) { return change(jobs), nil }); err == nil {
				t.Errorf("%s: no error", name)
			}
			if diff := cmp.Diff(before, e.shape(run)); diff != "" {
				t.Errorf("%s (-before +after):\n%s", name, diff)
			}
		}
		l := e.claim()
		if err := e.Settle(e.ctx, run, func(tgr.Run, []tgr.Job) (store.Change, error) {
			return store.Change{End: map[tgr.JobID]store.JobResult{l.Job.ID: {Conclusion: tgr.Success}}}, nil
		}); err == nil {
			t.Error("a job that a worker has was ended")
		}
	})
}

// A call waits for its group, and when another wants its place, its jobs are cancelled.
func TestCallInAGroup(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		first := e.planned("1", caller("call"))
		e.call(first, "call", 1, "prod", work("a"))
		second := e.planned("2", caller("call"))
		e.call(second, "call", 1, "prod", work("a"))
		e.looks(first, "run #1.1: in_progress", "call 0: in_progress", "call/a: pending")
		e.looks(second, "run #2.1: queued", "call 0: pending")
		third := e.planned("3", work("b"))
		e.must(e.Settle(e.ctx, third, func(_ tgr.Run, jobs []tgr.Job) (store.Change, error) {
			return store.Change{Expand: map[tgr.JobID]store.Expansion{jobs[0].ID: {Jobs: []tgr.Job{
				{Name: "b", Total: 1, Instance: json.RawMessage(`{}`), Group: tgr.Group{Name: "prod", CancelOther: true}}}}}}, nil
		}))
		e.looks(first, "run #1.1: in_progress", "call 0: in_progress", "call/a: completed (cancelled)")
		e.looks(second, "run #2.1: completed (cancelled)", "call 0: completed (cancelled)")
		e.end(first, e.job(first, "call 0").ID, tgr.Cancelled)
		e.finish(e.claim(), tgr.Success)
		e.looks(third, "run #3.1: completed (success)", "b: completed (success)")
	})
}

// called is a run of build, a call of two jobs in a matrix of two, and what needs the call; call[1]/b failed.
func (e *env) called(group string) tgr.RunID {
	e.t.Helper()
	run := e.planned("d", work("build"), caller("call", "build"), work("after", "call"))
	e.expand(run, "build", 1, 0)
	e.finish(e.claim(), tgr.Success)
	if group == "" {
		e.call(run, "call", 2, "", work("a"), work("b", "a"))
	} else {
		e.call(run, "call", 1, group, work("a"), work("b", "a"))
	}
	for _, j := range must(e.Jobs(e.ctx, run, 0)) {
		if !strings.Contains(j.Key, "/") {
			continue
		}
		e.expand(run, j.Key, 1, 0)
		c := tgr.Success
		if j.Key == "call[1]/b" || j.Key == "call/b" {
			c = tgr.Failure
		}
		e.finish(e.claim(), c)
	}
	for _, j := range must(e.Jobs(e.ctx, run, 0)) {
		if j.Kind == tgr.CallJob {
			c := tgr.Success
			if j.Index == 1 || j.Total == 1 {
				c = tgr.Failure
			}
			e.end(run, j.ID, c)
		}
	}
	e.must(e.Settle(e.ctx, run, func(_ tgr.Run, jobs []tgr.Job) (store.Change, error) {
		return store.Change{Skip: map[tgr.JobID]string{byKey(jobs, "after")[0].ID: "call failed"}}, nil
	}))
	return run
}

func TestRerunOfCalls(t *testing.T) {
	tests := []struct {
		name  string
		again func(e *env, run tgr.RunID) store.Again
		want  []string
	}{
		{"failed", func(*env, tgr.RunID) store.Again { return store.Again{Failed: true} }, []string{
			"after: pending", "build (0): completed (success)", "call 0: completed (success)", "call 1: in_progress",
			"call[0]/a (0): completed (success)", "call[0]/b (0): completed (success)", "call[1]/a (0): completed (success)", "call[1]/b (0): queued"}},
		{"one job in a call", func(e *env, run tgr.RunID) store.Again { return store.Again{Job: e.job(run, "call[0]/a (0)").ID} }, []string{
			"after: pending", "build (0): completed (success)", "call 0: in_progress", "call 1: completed (failure)",
			"call[0]/a (0): queued", "call[0]/b: pending", "call[1]/a (0): completed (success)", "call[1]/b (0): completed (failure)"}},
		{"a call", func(e *env, run tgr.RunID) store.Again { return store.Again{Job: e.job(run, "call 1").ID} }, []string{
			"after: pending", "build (0): completed (success)", "call 0: completed (success)", "call 1: queued",
			"call[0]/a (0): completed (success)", "call[0]/b (0): completed (success)"}},
		{"what a call needs", func(e *env, run tgr.RunID) store.Again { return store.Again{Job: e.job(run, "build (0)").ID} }, []string{
			"after: pending", "build (0): queued", "call: pending"}},
		{"all", func(*env, tgr.RunID) store.Again { return store.Again{} }, []string{"after: pending", "build (0): queued", "call: pending"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			each(t, func(t *testing.T, e *env) {
				run := e.called("")
				old := must(e.Jobs(e.ctx, run, 1))
				if got := must(e.Rerun(e.ctx, run, tt.again(e, run))); got != 2 {
					t.Fatalf("attempt %d", got)
				}
				got := e.shape(run)[1:]
				slices.Sort(got)
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("attempt 2 (-want +got):\n%s", diff)
				}
				if diff := cmp.Diff(old, must(e.Jobs(e.ctx, run, 1))); diff != "" {
					t.Errorf("attempt 1 was changed (-before +after):\n%s", diff)
				}
				for _, j := range must(e.Jobs(e.ctx, run, 2)) {
					if (j.Origin != 0) != j.Status.Done() {
						t.Errorf("%s: origin %d, %s", j.Name, j.Origin, j.Status)
					}
					if j.Origin != 0 && j.Kind == tgr.WorkJob && j.Outputs["from"] != j.Name {
						t.Errorf("%s: the outputs are %v", j.Name, j.Outputs)
					}
				}
			})
		})
	}
}

// A call that is repeated in part waits for its group like any other, and its jobs with it.
func TestRerunOfACallInAGroup(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		run := e.called("prod")
		holder := e.planned("holder", caller("call"))
		e.call(holder, "call", 1, "prod", work("a"))
		must(e.Rerun(e.ctx, run, store.Again{Failed: true}))
		want := []string{"after: pending", "build (0): completed (success)", "call 0: pending", "call/a (0): completed (success)", "call/b: pending"}
		got := e.shape(run)[1:]
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("while another holds the group (-want +got):\n%s", diff)
		}
		e.nothing()
		e.cancelAll(holder)
		e.end(holder, e.job(holder, "call 0").ID, tgr.Cancelled)
		e.begin(run)
		if got := e.job(run, "call 0"); got.Status != tgr.InProgress {
			t.Errorf("when it is its turn, the call is %s: %s", got.Status, got.Reason)
		}
	})
}

// A job of a called workflow that is in the group of its caller would wait for ever.
func TestCalledJobInTheGroupOfItsCaller(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		run := e.planned("d", caller("call"), work("other"))
		e.call(run, "call", 1, "prod", work("a"))
		in := func(key string) {
			e.must(e.Settle(e.ctx, run, func(_ tgr.Run, jobs []tgr.Job) (store.Change, error) {
				return store.Change{Expand: map[tgr.JobID]store.Expansion{byKey(jobs, key)[0].ID: {Jobs: []tgr.Job{
					{Name: key, Total: 1, Instance: json.RawMessage(`{}`), Group: tgr.Group{Name: "PROD"}}}}}}, nil
			}))
		}
		in("call/a")
		in("other")
		a := e.job(run, "call/a")
		if a.Conclusion != tgr.Cancelled || a.Reason != `the job would wait for call 0, which calls it and is in the concurrency group "PROD"` {
			t.Errorf("%s: %q", a.Conclusion, a.Reason)
		}
		if o := e.job(run, "other"); o.Status != tgr.Pending {
			t.Errorf("a job beside the call is %s: %q", o.Status, o.Reason)
		}
	})
}
