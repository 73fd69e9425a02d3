package store_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/store"
)

// grouped plans a run of one job whose workflow is in a group; change may make its event another.
func (e *env) grouped(id string, g tgr.Group, change func(*tgr.Event)) tgr.RunID {
	e.t.Helper()
	d := delivery(id)
	if change != nil {
		change(&d.Event)
	}
	_, _, err := e.Accept(e.ctx, d)
	e.must(err)
	l := e.claim(tgr.PlanJob)
	runs, err := e.Planned(e.ctx, l.Job.ID, l.Token, store.Planned{Runs: []store.PlannedRun{{
		WorkflowFile: "ci.yml", WorkflowName: "CI", Plan: []byte(`{}`), Group: g, Jobs: []tgr.Job{work("a")},
	}}})
	e.must(err)
	return runs[0]
}

// start expands the job of a run and claims it; false where the run may not go on.
func (e *env) start(run tgr.RunID, g tgr.Group) bool {
	e.t.Helper()
	called := false
	e.must(e.Settle(e.ctx, run, func(r tgr.Run, jobs []tgr.Job) (store.Change, error) {
		called = true
		c := store.Change{Expand: map[tgr.JobID]store.Expansion{}, Cancel: map[tgr.JobID]string{}}
		for _, j := range jobs {
			switch {
			case j.Status == tgr.Completed:
			case r.CancelReason != "":
				c.Cancel[j.ID] = r.CancelReason
			case j.Status == tgr.Pending && j.Instance == nil:
				c.Expand[j.ID] = store.Expansion{Jobs: []tgr.Job{{Name: j.Key, Total: 1, Instance: json.RawMessage(`{}`), Group: g}}}
			}
		}
		return c, nil
	}))
	return called
}

func TestRunGroups(t *testing.T) {
	deploy := tgr.Group{Name: "deploy"}
	each(t, func(t *testing.T, e *env) {
		first := e.grouped("1", deploy, nil)
		if !e.start(first, tgr.Group{}) {
			t.Fatal("the first run does not go on")
		}
		l := e.claim()
		second := e.grouped("2", tgr.Group{Name: "DEPLOY"}, nil)
		if e.start(second, tgr.Group{}) {
			t.Fatal("two runs of one group go on")
		}
		if r := must(e.Run(e.ctx, second)); r.Reason != `waits for the concurrency group "DEPLOY", which run 1 holds` {
			t.Errorf("the second waits with the reason %q", r.Reason)
		}
		third := e.grouped("3", deploy, nil)
		e.looks(second, "run #2.1: completed (cancelled)", "a: completed (cancelled)")
		if r := must(e.Run(e.ctx, second)); !strings.Contains(r.Reason, "run 3 came to the concurrency group") {
			t.Errorf("the second was sent away with the reason %q", r.Reason)
		}
		// Another repository, and a fork, have groups of their own.
		for i, change := range []func(*tgr.Event){func(ev *tgr.Event) { ev.Repo.ID = 8 }, func(ev *tgr.Event) { ev.Forked = true }} {
			other := e.grouped(fmt.Sprint("other ", i), tgr.Group{Name: "deploy", CancelOther: true}, change)
			if !e.start(other, tgr.Group{}) {
				t.Errorf("run %d waits for a group of somebody else", other)
			}
			e.finish(e.claim(), tgr.Success)
		}
		e.Nudged()
		e.finish(l, tgr.Success)
		if got := e.Nudged(); !slices.Equal(got, []tgr.RunID{third}) || !e.start(third, tgr.Group{}) {
			t.Fatalf("when the first is done, %v are to go on; want the third", got)
		}
		if r := must(e.Run(e.ctx, third)); r.Reason != "" || r.CancelReason != "" {
			t.Errorf("the third goes on, and its reason is still %q", r.Reason+r.CancelReason)
		}
		l = e.claim()
		fourth := e.grouped("4", tgr.Group{Name: "deploy", CancelOther: true}, nil)
		if r := must(e.Run(e.ctx, third)); r.CancelReason != `superseded by run 6 in the concurrency group "deploy"` {
			t.Errorf("cancel-in-progress: the third's reason is %q", r.CancelReason)
		}
		e.start(third, tgr.Group{})
		if cancel, _, err := e.Beat(e.ctx, l.Job.ID, l.Token, time.Minute); err != nil || !cancel {
			t.Errorf("the third's job is not cancelled: %v", err)
		}
		if e.start(fourth, tgr.Group{}) {
			t.Error("the fourth goes on beside the third, which still winds up")
		}
		e.finish(l, tgr.Cancelled)
		if !e.start(fourth, tgr.Group{}) {
			t.Error("the fourth does not go on")
		}
		// A repeated run comes anew.
		must(e.Rerun(e.ctx, first, store.Again{}))
		e.nothingBut(fourth)
		e.cancelAll(fourth)
		e.nothingBut(first)
	})
}

// nothingBut claims the one job that can be, which has to be of run.
func (e *env) nothingBut(run tgr.RunID) {
	e.t.Helper()
	if l := e.claim(); l.Run.ID != run {
		e.t.Fatalf("claimed a job of run %d; want one of %d", l.Run.ID, run)
	}
	e.nothing()
	must(e.OwnerGone(e.ctx, "node-1"))
}

// A run on hold comes to its group when it is approved, and not before: strangers hold up nobody, and cancel nothing.
func TestGroupOfARunOnHold(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		g := tgr.Group{Name: "ci", CancelOther: true}
		held := func(id string) tgr.RunID {
			e.accept(id)
			l := e.claim(tgr.PlanJob)
			return must(e.Planned(e.ctx, l.Job.ID, l.Token, store.Planned{Runs: []store.PlannedRun{{
				WorkflowFile: "ci.yml", Group: g, Jobs: []tgr.Job{work("a")}, Hold: "a fork",
			}}}))[0]
		}
		stranger := held("1")
		known := e.grouped("2", tgr.Group{Name: "ci"}, nil)
		if !e.start(known, tgr.Group{}) {
			t.Fatal("a run waits for one that nobody has approved")
		}
		l := e.claim()
		rejected := held("3")
		must(e.Approve(e.ctx, rejected, tgr.Approval{By: "ada"}))
		e.start(rejected, tgr.Group{})
		must(e.Rerun(e.ctx, rejected, store.Again{}))
		if r := must(e.Run(e.ctx, known)); r.CancelReason != "" {
			t.Errorf("a run was cancelled for one that nobody has approved: %s", r.CancelReason)
		}
		e.Nudged()
		must(e.Approve(e.ctx, stranger, tgr.Approval{Approved: true, By: "ada"}))
		if r := must(e.Run(e.ctx, known)); r.CancelReason != `superseded by run 1 in the concurrency group "ci"` {
			t.Errorf("approved: the other's reason is %q", r.CancelReason)
		}
		if e.start(stranger, tgr.Group{}) {
			t.Error("approved: it goes on beside the one that it has cancelled")
		}
		e.finish(l, tgr.Cancelled)
		if !e.start(stranger, tgr.Group{}) || !slices.Contains(e.Nudged(), stranger) {
			t.Error("approved: it does not go on when its group is free")
		}
	})
}

func TestJobGroups(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		queue := tgr.Group{Name: "db", QueueMax: true}
		var runs []tgr.RunID
		for i := range 3 {
			runs = append(runs, e.grouped(fmt.Sprint(i), tgr.Group{}, nil))
			e.start(runs[i], queue)
		}
		for i, run := range runs {
			l := e.claim()
			if l.Run.ID != run {
				t.Fatalf("claimed run %d; want %d: first come, first served", l.Run.ID, run)
			}
			e.nothing()
			if i == 0 {
				j := must(e.Jobs(e.ctx, runs[2], 0))[0]
				if want := fmt.Sprintf(`waits for the concurrency group "db", which job %d of run 1 holds`, l.Job.ID); j.Reason != want {
					t.Errorf("reason %q; want %q", j.Reason, want)
				}
				// A fault of ours does not let go of the group.
				if _, err := e.Release(e.ctx, l.Job.ID, l.Token, "no boot", false); err != nil {
					t.Fatal(err)
				}
				e.nothing() // and is given a moment to pass
				e.clock.add(time.Second)
				l = e.claim()
			}
			e.finish(l, tgr.Failure)
		}
		// A job that would wait for its own run.
		own := e.grouped("own", tgr.Group{Name: "Own"}, nil)
		e.start(own, tgr.Group{Name: "own"})
		e.looks(own, "run #4.1: completed (cancelled)", "a: completed (cancelled)")
		// A repeated job comes anew, behind who is there.
		again := e.grouped("again", tgr.Group{}, nil)
		e.start(again, queue)
		must(e.Rerun(e.ctx, runs[0], store.Again{Failed: true}))
		e.nothingBut(again)
		e.cancelAll(again)
		e.nothingBut(runs[0])
	})
}

func TestGroupIsBounded(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		for i := range 103 {
			e.grouped(fmt.Sprint(i), tgr.Group{Name: "g", QueueMax: true}, nil)
		}
		done := must(e.Runs(e.ctx, store.RunFilter{Status: tgr.Completed}))
		if len(done) != 2 || !strings.Contains(done[0].Reason, "100 wait for the concurrency group") {
			t.Errorf("%d runs were sent away; want 2 of 103: %+v", len(done), done)
		}
	})
}

// Whatever comes, ends, is cancelled and repeated in whatever order: a group never has two holders, and while somebody
// waits it has one.
func TestGroupsNeverShared(t *testing.T) {
	if checks := flag.Lookup("rapid.checks"); checks.Value.String() == "40" { // each walk makes many runs: a third will do
		defer flag.Set("rapid.checks", "40")
		if err := flag.Set("rapid.checks", "12"); err != nil {
			t.Fatal(err)
		}
	}
	eachFresh(t, func(t *testing.T, e *env) {
		e.open(store.Config{})
		n := 0
		rapid.Check(t, func(rt *rapid.T) {
			n++
			g := func(t *rapid.T) tgr.Group {
				return tgr.Group{Name: fmt.Sprint(rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, "group"), n),
					CancelOther: rapid.Bool().Draw(t, "cancel"), QueueMax: rapid.Bool().Draw(t, "max")}
			}
			groups := map[tgr.RunID][2]tgr.Group{}
			var runs []tgr.RunID
			leases := map[tgr.JobID]*store.Lease{}
			settle := func() {
				for _, run := range runs {
					e.start(run, groups[run][1])
				}
			}
			rt.Repeat(map[string]func(*rapid.T){
				"come": func(t *rapid.T) {
					g := [2]tgr.Group{g(t), g(t)}
					run := e.grouped(fmt.Sprint(n, " ", len(runs)), g[0], nil)
					groups[run], runs = g, append(runs, run)
				},
				"settle": func(*rapid.T) { settle() },
				"claim": func(t *rapid.T) {
					if l, err := e.Claim(e.ctx, store.ClaimRequest{Owner: "w", Lease: time.Hour}); err == nil {
						leases[l.Job.ID] = l
					}
				},
				"end": func(t *rapid.T) {
					for id, l := range leases {
						e.finish(l, tgr.Failure)
						delete(leases, id)
						return
					}
				},
				"again or cancel": func(t *rapid.T) {
					if len(runs) == 0 {
						return
					}
					run := rapid.SampledFrom(runs).Draw(t, "run")
					if must(e.Run(e.ctx, run)).Status.Done() {
						must(e.Rerun(e.ctx, run, store.Again{}))
					} else {
						e.must(e.CancelRun(e.ctx, run, 0, "", "x"))
					}
				},
				"": func(t *rapid.T) {
					holders, waiting := map[string]int{}, map[string]string{}
					for _, id := range runs {
						r := must(e.Run(e.ctx, id))
						if strings.HasPrefix(r.Reason, "waits for") {
							waiting[r.Group.Name] = "run " + id.String()
						} else if !r.Status.Done() && r.Group.Name != "" {
							holders[r.Group.Name]++
						}
						for _, j := range must(e.Jobs(e.ctx, id, 0)) {
							switch {
							case j.Group.Name == "" || j.Status.Done():
							case j.Status == tgr.Pending && !strings.HasPrefix(r.Reason, "waits for"):
								waiting[j.Group.Name] = "job " + j.ID.String()
							case j.Status != tgr.Pending:
								holders[j.Group.Name]++
							}
						}
					}
					for name, n := range holders {
						if n > 1 {
							t.Fatalf("%d hold the group %q", n, name)
						}
					}
					for name, who := range waiting {
						if holders[name] == 0 {
							t.Fatalf("%s waits for the group %q, which nobody holds", who, name)
						}
					}
				},
			})
			for _, run := range runs {
				if !must(e.Run(e.ctx, run)).Status.Done() {
					e.cancelAll(run)
				}
			}
			must(e.OwnerGone(e.ctx, "w"))
		})
	})
}
