package github

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
)

// A run on hold says so, and what was decided takes its place: nothing is left that waits for ever.
func TestReportsOfAHold(t *testing.T) {
	decided := func(approved bool) func(*tgr.Run) {
		return func(r *tgr.Run) {
			r.Approvals = []tgr.Approval{{Environment: "prod", By: "eve"}, {Approved: approved, By: "ada", At: epoch}}
			if approved {
				r.Hold = ""
			}
		}
	}
	for name, tt := range map[string]struct {
		change            func(*tgr.Run)
		state, conclusion string
		says              string
	}{
		"waits":     {func(*tgr.Run) {}, "pending", "action_required", "waits for ada"},
		"approved":  {decided(true), "success", "success", "Approved by ada"},
		"rejected":  {decided(false), "error", "cancelled", "Rejected by ada"},
		"cancelled": {func(r *tgr.Run) { r.Status, r.Reason = tgr.Completed, "cancelled by bob" }, "error", "cancelled", "cancelled by bob"},
	} {
		run, _ := testRun()
		run.Status, run.Conclusion, run.Hold = tgr.Queued, "", "waits for ada"
		tt.change(&run)
		jobs := []tgr.Job{{ID: 2, Kind: tgr.WorkJob, Key: "a", Status: tgr.Pending},
			{ID: 3, Kind: tgr.CallJob, Key: "call", Status: tgr.InProgress, Started: epoch, Instance: []byte(`{}`)}}
		var status StatusReport
		var check CheckReport
		keys := map[string]string{}
		for _, o := range Reports(run, jobs, options()) {
			keys[o.Key] = string(o.Body)
		}
		for key, into := range map[string]any{"status/7/" + shaA + "/CI / approval (pull_request)": &status, "check/hold/12": &check} {
			if err := json.Unmarshal([]byte(keys[key]), into); err != nil {
				t.Fatalf("%s: %s: %v in %v", name, key, err, keys)
			}
		}
		got := []string{status.State, status.Description, check.Conclusion}
		if diff := cmp.Diff([]string{tt.state, tt.says, tt.conclusion}, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if keys["check/3"] != "" {
			t.Errorf("%s: a call that goes on is reported beside its jobs", name)
		}
	}
	run, jobs := testRun()
	for _, o := range Reports(run, jobs, options()) {
		if o.Key == "check/hold/12" {
			t.Error("a run that never was on hold is reported as one")
		}
	}
}
