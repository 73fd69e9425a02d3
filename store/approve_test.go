package store_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/store"
)

// gate expands the pending job key into one that waits at the gate of an environment.
func (e *env) gate(run tgr.RunID, key, environment, group string) {
	e.t.Helper()
	e.must(e.Settle(e.ctx, run, func(_ tgr.Run, jobs []tgr.Job) (store.Change, error) {
		return store.Change{Expand: map[tgr.JobID]store.Expansion{byKey(jobs, key)[0].ID: {Jobs: []tgr.Job{{Name: key, Total: 1, Status: tgr.Queued,
			Instance: json.RawMessage(`{}`), Environment: environment, Gated: true, Group: tgr.Group{Name: group}}}}}}, nil
	}))
}

// queue lets a gated job go on at a time.
func (e *env) queue(run tgr.RunID, name string, at time.Time) {
	e.t.Helper()
	id := e.job(run, name).ID
	e.must(e.Settle(e.ctx, run, func(tgr.Run, []tgr.Job) (store.Change, error) {
		return store.Change{Queue: map[tgr.JobID]time.Time{id: at}}, nil
	}))
}

func TestGatedJobs(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		run := e.planned("d", work("a"), work("b"), work("c"))
		e.gate(run, "a", "Prod", "deploys")
		e.gate(run, "b", "test", "")
		e.gate(run, "c", "prod", "deploys")
		e.nothing()
		_, err := e.Approve(e.ctx, run, tgr.Approval{Approved: true, By: "ada"})
		e.code(err, tgr.Conflict) // which of the two?
		_, err = e.Approve(e.ctx, run, tgr.Approval{Environment: "staging", Approved: true, By: "ada"})
		e.code(err, tgr.Conflict)
		got := must(e.Approve(e.ctx, run, tgr.Approval{Environment: "PROD", Approved: true, By: "ada", Comment: "looks good"}))
		if got != "Prod" {
			t.Errorf("approved %q", got)
		}
		_, err = e.Approve(e.ctx, run, tgr.Approval{Environment: "prod", By: "eve"})
		e.code(err, tgr.Conflict)
		if got := must(e.Approve(e.ctx, run, tgr.Approval{By: "eve"})); got != "test" {
			t.Errorf("without a name, %q was rejected", got)
		}
		r := must(e.Run(e.ctx, run))
		want := []tgr.Approval{{Attempt: 1, Environment: "Prod", Approved: true, By: "ada", Comment: "looks good", At: e.clock.now()},
			{Attempt: 1, Environment: "test", By: "eve", At: e.clock.now()}}
		if diff := cmp.Diff(want, r.Approvals); diff != "" {
			t.Errorf("approvals (-want +got):\n%s", diff)
		}
		// Only what was let through enters the group, and one at a time.
		e.must(e.Settle(e.ctx, run, func(_ tgr.Run, jobs []tgr.Job) (store.Change, error) {
			return store.Change{Wait: map[tgr.JobID]string{byKey(jobs, "b")[0].ID: "waits for ada"}}, nil
		}))
		e.queue(run, "a", time.Time{})
		e.queue(run, "c", time.Time{})
		e.looks(run, "run #1.1: queued", "a: queued", "b: pending", "c: pending")
		if b := e.job(run, "b"); b.Reason != "waits for ada" {
			t.Errorf("the reason of b is %q", b.Reason)
		}
		e.finish(e.claim(), tgr.Success)
		e.looks(run, "run #1.1: in_progress", "a: completed (success)", "b: pending", "c: queued")
		e.finish(e.claim(), tgr.Success)
		// A wait is kept.
		e.queue(run, "b", e.clock.now().Add(time.Minute))
		e.nothing()
		e.clock.add(time.Minute)
		e.finish(e.claim(), tgr.Success)
		e.looks(run, "run #1.1: completed (success)", "a: completed (success)", "b: completed (success)", "c: completed (success)")
		_, err = e.Approve(e.ctx, run, tgr.Approval{Environment: "prod", Approved: true, By: "ada"})
		e.code(err, tgr.Conflict)

		// Another attempt asks again.
		must(e.Rerun(e.ctx, run, store.Again{Job: e.job(run, "a").ID}))
		e.nothing()
		if a := e.job(run, "a"); !a.Gated || a.Status != tgr.Pending {
			t.Errorf("again, a is %+v", a)
		}
		if got := must(e.Approve(e.ctx, run, tgr.Approval{Approved: true, By: "ada"})); got != "Prod" {
			t.Errorf("approved %q", got)
		}
	})
}

func TestHold(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		held := func(id string) tgr.RunID {
			e.accept(id)
			l := e.claim(tgr.PlanJob)
			return must(e.Planned(e.ctx, l.Job.ID, l.Token, store.Planned{Runs: []store.PlannedRun{{WorkflowFile: "f", Jobs: []tgr.Job{work("a")}, Hold: "a fork"}}}))[0]
		}
		run := held("1")
		if r := must(e.Run(e.ctx, run)); r.Hold != "a fork" {
			t.Fatalf("the run is held for %q", r.Hold)
		}
		must(e.Approve(e.ctx, run, tgr.Approval{Approved: true, By: "ada"}))
		if r := must(e.Run(e.ctx, run)); r.Hold != "" || len(r.Approvals) != 1 || r.CancelReason != "" {
			t.Errorf("approved: %+v", r)
		}
		_, err := e.Approve(e.ctx, run, tgr.Approval{Approved: true, By: "ada"})
		e.code(err, tgr.Conflict)

		other := held("2")
		must(e.Approve(e.ctx, other, tgr.Approval{By: "ada", Comment: "spam"}))
		if r := must(e.Run(e.ctx, other)); r.CancelReason != "rejected by ada: spam" || r.Hold == "" {
			t.Errorf("rejected: %+v", r)
		}
		_, err = e.Approve(e.ctx, other, tgr.Approval{Approved: true, By: "eve"})
		e.code(err, tgr.Conflict)
	})
}

func TestEnvironments(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		prod := tgr.Environment{Repo: "ada/engine", Name: "Prod", Branches: []string{"main"}, Approval: true, Wait: 3}
		e.must(e.PutEnvironment(e.ctx, 7, tgr.Environment{Name: "prod"}))
		e.must(e.PutEnvironment(e.ctx, 7, prod))
		e.must(e.PutEnvironment(e.ctx, 8, tgr.Environment{Name: "other"}))
		e.must(e.PutSetting(e.ctx, store.SettingRow{SettingKey: store.SettingKey{Kind: store.Variable, RepoID: 7, Environment: "PROD", Name: "a"}, Value: []byte("1")}, 1))
		if diff := cmp.Diff(prod, must(e.Environment(e.ctx, 7, "PROD"))); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(tgr.Environment{Name: "prod"}, must(e.Environment(e.ctx, 9, "prod"))); diff != "" {
			t.Errorf("one that is not known (-want +got):\n%s", diff)
		}
		if got := must(e.Environments(e.ctx, 7)); len(got) != 1 {
			t.Errorf("the repository has %+v", got)
		}
		e.must(e.DeleteEnvironment(e.ctx, 7, "pRod"))
		e.code(e.DeleteEnvironment(e.ctx, 7, "prod"), tgr.NotFound)
		if rows := must(e.Settings(e.ctx, store.SettingKey{Kind: store.Variable, RepoID: 7, Environment: "prod"})); len(rows) > 0 {
			t.Errorf("its variables are left: %+v", rows)
		}
		e.code(e.DeleteSetting(e.ctx, store.SettingKey{Kind: store.Variable, RepoID: 7, Name: "A"}), tgr.NotFound)
		e.accept("d")
		if id := must(e.RepoID(e.ctx, "ADA/engine")); id != 7 {
			t.Errorf("the repository's id is %d", id)
		}
		if id := must(e.RepoID(e.ctx, "no/where")); id != 0 {
			t.Errorf("a repository that nobody knows has the id %d", id)
		}
	})
}
