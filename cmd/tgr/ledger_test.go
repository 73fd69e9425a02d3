package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/dispatch"
	"github.com/terraphim/tgr/store"
	"github.com/terraphim/tgr/workflow"
)

// What dispatch decides by the clock is what the database has then.
func TestNothingWaitsForEver(t *testing.T) {
	now := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	clock := func() time.Time { return now }
	db, err := store.Open(t.Context(), store.Config{Path: filepath.Join(t.TempDir(), "tgr.db"), Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	d := dispatch.New(dispatch.Config{Jobs: ledger{db}, Runs: ledger{db}, Now: clock})
	w, _ := workflow.Parse("ci.yml", []byte(`
on: push
jobs:
  build: {runs-on: x, steps: [{run: make}]}
  deploy: {needs: build, runs-on: x, steps: [{run: make}]}
  report: {needs: build, if: always(), runs-on: x, steps: [{run: make}]}
`))
	plan, problems := workflow.Compile(w, workflow.Options{Trigger: workflow.Trigger{Event: "push"}})
	if workflow.Failed(problems) {
		t.Fatal(problems)
	}
	data, err := json.Marshal(plan)
	if err != nil {
		t.Fatal(err)
	}
	begin := func(id, hold string) tgr.RunID {
		t.Helper()
		if _, _, err := db.Accept(t.Context(), tgr.Delivery{ID: tgr.DeliveryID(id), Event: tgr.Event{Name: "push", Ref: "refs/heads/main"}}); err != nil {
			t.Fatal(err)
		}
		l, err := db.Claim(t.Context(), store.ClaimRequest{Owner: "w", Lease: time.Minute, Kinds: []tgr.JobKind{tgr.PlanJob}})
		if err != nil {
			t.Fatal(err)
		}
		p := store.PlannedRun{WorkflowFile: "ci.yml", Plan: data, Hold: hold}
		for _, j := range plan.Jobs {
			p.Jobs = append(p.Jobs, tgr.Job{Key: j.Key, Name: j.Key, Needs: j.Needs})
		}
		runs, err := db.Planned(t.Context(), l.Job.ID, l.Token, store.Planned{Runs: []store.PlannedRun{p}})
		if err != nil {
			t.Fatal(err)
		}
		return runs[0]
	}
	after := func(pause time.Duration, id tgr.RunID, want ...string) {
		t.Helper()
		now = now.Add(pause)
		if err := d.Settle(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		run, err := db.Run(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		jobs, err := db.Jobs(t.Context(), id, 0)
		if err != nil {
			t.Fatal(err)
		}
		got := []string{fmt.Sprintf("run %s %s", tgr.Outcome{Status: run.Status, Conclusion: run.Conclusion}, run.Reason)}
		for _, j := range jobs {
			got = append(got, fmt.Sprintf("%s %s %s", j.Key, tgr.Outcome{Status: j.Status, Conclusion: j.Conclusion}, j.Reason))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("after %s (-want +got):\n%s", pause, diff)
		}
	}
	const day = 24 * time.Hour
	run := begin("1", "")
	after(time.Hour, run, "run queued ", "deploy pending ", "report pending ", "build queued ")
	after(day, run, "run queued ", "deploy pending ", "report pending ", "build queued ")
	const gone = "completed (cancelled) waited 24 hours for a machine, and none became free"
	after(time.Second, run, "run in_progress ", "deploy completed (skipped) if: success() is false: build ended as cancelled", "build "+gone, "report queued ")
	after(day, run, "run in_progress ", "deploy completed (skipped) if: success() is false: build ended as cancelled", "build "+gone, "report queued ")
	after(time.Second, run, "run completed (cancelled) ", "deploy completed (skipped) if: success() is false: build ended as cancelled", "build "+gone, "report "+gone)

	run = begin("2", "a fork")
	after(30*day, run, "run queued ", "build pending ", "deploy pending ", "report pending ")
	const unapproved = "nobody approved the run within 30 days"
	after(time.Second, run, "run completed (cancelled) "+unapproved, "build completed (cancelled) "+unapproved, "deploy completed (cancelled) "+unapproved, "report completed (cancelled) "+unapproved)

	run = begin("3", "")
	after(0, run, "run queued ", "deploy pending ", "report pending ", "build queued ")
	l, err := db.Claim(t.Context(), store.ClaimRequest{Owner: "w", Lease: 40 * day})
	if err != nil {
		t.Fatal(err)
	}
	after(35*day, run, "run in_progress ", "deploy pending ", "report pending ", "build in_progress ")
	const slow = "completed (cancelled) the run was not completed within 35 days"
	after(time.Second, run, "run in_progress ", "deploy "+slow, "report "+slow, "build in_progress ")
	if cancel, why, err := db.Beat(t.Context(), l.Job.ID, l.Token, day); err != nil || !cancel || why != "the run was not completed within 35 days" {
		t.Errorf("the job that runs is told %t, %q, %v", cancel, why, err)
	}
	if err := db.Finish(t.Context(), l.Job.ID, l.Token, store.JobResult{Conclusion: tgr.Cancelled, Reason: "it was told to"}); err != nil {
		t.Fatal(err)
	}
	after(0, run, "run completed (cancelled) the run was not completed within 35 days", "deploy "+slow, "report "+slow, "build completed (cancelled) it was told to")
}
