package store_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/store"
)

// followed has all runs of the repository followed, and returns what the hook is told, as "attempt action status".
func (e *env) followed() *[]string {
	e.t.Helper()
	var told []string
	e.follows = func(run tgr.Run, action string, followers []tgr.Follower) (tgr.Event, bool) {
		if len(followers) != 1 || len(run.Plan) == 0 || len(run.Event.Payload) == 0 || run.Event.Name == "workflow_run" {
			return tgr.Event{}, false
		}
		told = append(told, fmt.Sprintf("%d %s %s%s", run.Attempt, action, run.Status, run.Conclusion))
		return tgr.Event{Name: "workflow_run", Action: action, Repo: run.Event.Repo, Ref: "refs/heads/main"}, true
	}
	e.accept("learns")
	l := e.claim()
	_, err := e.Planned(e.ctx, l.Job.ID, l.Token, store.Planned{Reason: "nothing", Awaited: &tgr.Awaited{Followers: []tgr.Follower{{Types: []string{"completed"}}}}})
	e.must(err)
	return &told
}

// followings are the events of followed runs, in their order, and there are no others.
func (e *env) wantFollowings(want ...string) {
	e.t.Helper()
	list, err := e.Deliveries(e.ctx, 100)
	e.must(err)
	got := []string{}
	for _, d := range slices.Backward(list) {
		if d.Event.Name == "workflow_run" {
			got = append(got, string(d.ID))
			if len(d.Runs) != 1 {
				e.t.Errorf("delivery %s has the runs %v", d.ID, d.Runs)
			}
		}
	}
	if diff := cmp.Diff(append([]string{}, want...), got); diff != "" {
		e.t.Errorf("events (-want +got):\n%s", diff)
	}
}

func TestFollow(t *testing.T) { each(t, follow) }

func follow(t *testing.T, e *env) {
	told := e.followed()
	run := e.planned("1", work("a"), work("b"))
	id := func(attempt int, action string) string { return fmt.Sprintf("tgr-run-%d-%d-%s", run, attempt, action) }
	want := []string{id(1, "requested")}
	e.wantFollowings(want...)
	e.expand(run, "a", 1, 0)
	e.expand(run, "b", 1, 0)
	e.wantFollowings(want...)

	// A job that goes back into the queue makes the run begin twice.
	l := e.claim(tgr.WorkJob)
	want = append(want, id(1, "in_progress"))
	e.wantFollowings(want...)
	_, err := e.Release(e.ctx, l.Job.ID, l.Token, "the machine did not boot", false)
	e.must(err)
	e.clock.add(time.Minute)
	e.finish(e.claim(tgr.WorkJob), tgr.Failure)
	e.wantFollowings(want...)
	e.finish(e.claim(tgr.WorkJob), tgr.Success)
	want = append(want, id(1, "completed"))
	e.wantFollowings(want...)

	// A re-run was not requested again. This one goes on at once, as a part of it is done.
	_, err = e.Rerun(e.ctx, run, store.Again{Failed: true})
	e.must(err)
	want = append(want, id(2, "in_progress"))
	e.wantFollowings(want...)
	e.finish(e.claim(tgr.WorkJob), tgr.Success)
	e.wantFollowings(append(want, id(2, "completed"))...)
	if diff := cmp.Diff([]string{"1 requested queued", "1 in_progress in_progress", "1 completed completedfailure",
		"2 in_progress in_progress", "2 completed completedsuccess"}, *told); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
}

// What is followed are runs of workflows, from when they may go on, whatever becomes of them.
func TestFollowKinds(t *testing.T) { each(t, followKinds) }

func followKinds(t *testing.T, e *env) {
	e.followed()
	plan := func(id string, r store.PlannedRun) tgr.RunID {
		t.Helper()
		e.accept(id)
		l := e.claim(tgr.PlanJob)
		r.WorkflowFile, r.Plan = "ci.yml", []byte(`{"version":1}`)
		runs, err := e.Planned(e.ctx, l.Job.ID, l.Token, store.Planned{Runs: []store.PlannedRun{r}})
		e.must(err)
		for { // what follows starts nothing
			l, err := e.Claim(e.ctx, store.ClaimRequest{Owner: "x", Lease: time.Minute, Kinds: []tgr.JobKind{tgr.PlanJob}})
			if err != nil {
				return runs[0]
			}
			_, err = e.Planned(e.ctx, l.Job.ID, l.Token, store.Planned{Reason: "nothing"})
			e.must(err)
		}
	}
	broken := plan("1", store.PlannedRun{Conclusion: tgr.StartupFailure, Reason: "ci.yml:1:1: no"})
	held := plan("2", store.PlannedRun{Jobs: []tgr.Job{work("a")}, Hold: "a stranger's"})
	want := []string{fmt.Sprintf("tgr-run-%d-1-requested", broken), fmt.Sprintf("tgr-run-%d-1-completed", broken)}
	e.wantFollowings(want...)
	_, err := e.Approve(e.ctx, held, tgr.Approval{Approved: true, By: "ada"})
	e.must(err)
	want = append(want, fmt.Sprintf("tgr-run-%d-1-requested", held))
	e.wantFollowings(want...)
	e.cancelAll(held)
	e.wantFollowings(append(want, fmt.Sprintf("tgr-run-%d-1-completed", held))...)
}

// Nothing is made where nobody asks for it.
func TestNobodyFollows(t *testing.T) { each(t, nobodyFollows) }

func nobodyFollows(t *testing.T, e *env) {
	told := e.followed()
	e.accept("learns otherwise")
	l := e.claim()
	_, err := e.Planned(e.ctx, l.Job.ID, l.Token, store.Planned{Reason: "nothing", Awaited: &tgr.Awaited{}})
	e.must(err)
	run := e.planned("1", work("a"))
	e.expand(run, "a", 1, 0)
	e.finish(e.claim(tgr.WorkJob), tgr.Success)
	e.wantFollowings()
	if len(*told) != 0 {
		t.Errorf("told %v", *told)
	}
}
