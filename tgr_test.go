package tgr_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/terraphim/tgr"
)

func TestNextJob(t *testing.T) {
	all := []tgr.Status{tgr.Pending, tgr.Queued, tgr.InProgress, tgr.Completed}
	allowed := map[[2]tgr.Status]bool{
		{tgr.Pending, tgr.Queued}: true, {tgr.Pending, tgr.Completed}: true,
		{tgr.Queued, tgr.InProgress}: true, {tgr.Queued, tgr.Completed}: true,
		{tgr.InProgress, tgr.Completed}: true, {tgr.InProgress, tgr.Queued}: true,
	}
	for _, from := range all {
		for _, to := range all {
			err := tgr.NextJob(from, to)
			if (err == nil) != allowed[[2]tgr.Status{from, to}] {
				t.Errorf("NextJob(%s, %s) = %v", from, to, err)
			}
			if err != nil && tgr.CodeOf(err) != tgr.Conflict {
				t.Errorf("NextJob(%s, %s) has code %s, want %s", from, to, tgr.CodeOf(err), tgr.Conflict)
			}
			if tgr.NextStep(from, to) == nil && (from.Done() || to == tgr.Pending || to == tgr.Queued) {
				t.Errorf("NextStep(%s, %s) goes back", from, to)
			}
		}
	}
}

func TestFold(t *testing.T) {
	done := func(c tgr.Conclusion) tgr.Outcome { return tgr.Outcome{Status: tgr.Completed, Conclusion: c} }
	may := tgr.Outcome{Status: tgr.Completed, Conclusion: tgr.Failure, ContinueOnError: true}
	pending, queued, running := tgr.Outcome{Status: tgr.Pending}, tgr.Outcome{Status: tgr.Queued}, tgr.Outcome{Status: tgr.InProgress}
	tests := []struct {
		jobs []tgr.Outcome
		want string
	}{
		{nil, "queued"},
		{[]tgr.Outcome{pending, queued}, "queued"},
		{[]tgr.Outcome{pending, running}, "in_progress"},
		{[]tgr.Outcome{done(tgr.Success), pending}, "in_progress"},
		{[]tgr.Outcome{done(tgr.Success), done(tgr.Skipped)}, "completed (success)"},
		{[]tgr.Outcome{done(tgr.Skipped), done(tgr.Skipped)}, "completed (skipped)"},
		{[]tgr.Outcome{done(tgr.Success), done(tgr.Failure)}, "completed (failure)"},
		{[]tgr.Outcome{done(tgr.TimedOut), done(tgr.Success)}, "completed (failure)"},
		{[]tgr.Outcome{done(tgr.Cancelled), done(tgr.Success)}, "completed (cancelled)"},
		{[]tgr.Outcome{done(tgr.Cancelled), done(tgr.Failure)}, "completed (failure)"},
		{[]tgr.Outcome{may, done(tgr.Success)}, "completed (success)"},
		{[]tgr.Outcome{done("")}, "completed (failure)"}, // an absent conclusion is a failure
	}
	for _, tt := range tests {
		status, conclusion := tgr.Fold(tt.jobs)
		if got := (tgr.Outcome{Status: status, Conclusion: conclusion}).String(); got != tt.want {
			t.Errorf("Fold(%v) = %s, want %s", tt.jobs, got, tt.want)
		}
	}
}

// The jobs that a plan job made stand for it; one that failed stands for itself.
func TestFoldJobs(t *testing.T) {
	plan := tgr.Job{Kind: tgr.PlanJob, Status: tgr.Completed, Conclusion: tgr.Success}
	work := tgr.Job{Kind: tgr.WorkJob, Status: tgr.Queued}
	if status, _ := tgr.FoldJobs([]tgr.Job{plan, work}); status != tgr.Queued {
		t.Errorf("a planned run whose job waits is %s, want queued", status)
	}
	plan.Conclusion = tgr.Failure
	if status, conclusion := tgr.FoldJobs([]tgr.Job{plan}); status != tgr.Completed || conclusion != tgr.Failure {
		t.Errorf("a run that could not be planned is %s (%s), want completed (failure)", status, conclusion)
	}
}

func TestErrors(t *testing.T) {
	cause := errors.New("connection refused")
	tests := []struct {
		err     error
		code    tgr.Code
		blame   tgr.Blame
		message string
	}{
		{nil, "", "", ""},
		{cause, tgr.Internal, tgr.BlameOurs, "internal error"},
		{tgr.Errorf("plan", tgr.Workflow, "ci.yml:3:1: no jobs"), tgr.Workflow, tgr.BlameWorkflow, "ci.yml:3:1: no jobs"},
		{fmt.Errorf("outer: %w", &tgr.Error{Op: "fetch", Code: tgr.Unavailable, Message: "no answer", Err: cause}), tgr.Unavailable, tgr.BlameOurs, "no answer"},
	}
	for _, tt := range tests {
		if got := tgr.CodeOf(tt.err); got != tt.code {
			t.Errorf("CodeOf(%v) = %q, want %q", tt.err, got, tt.code)
		}
		if got := tgr.BlameOf(tt.err); got != tt.blame {
			t.Errorf("BlameOf(%v) = %q, want %q", tt.err, got, tt.blame)
		}
		if got := tgr.MessageOf(tt.err); got != tt.message {
			t.Errorf("MessageOf(%v) = %q, want %q", tt.err, got, tt.message)
		}
	}
	e := &tgr.Error{Op: "fetch", Message: "no answer", Err: cause}
	if got, want := e.Error(), "fetch: no answer: connection refused"; got != want || !errors.Is(e, cause) {
		t.Errorf("Error = %q, want %q, and the cause in its chain", got, want)
	}
	if wrapped := tgr.Errorf("fetch", tgr.Unavailable, "no answer: %w", cause); !errors.Is(wrapped, cause) {
		t.Error("Errorf drops the cause that %w names")
	}
}

func TestNewToken(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		tok := tgr.NewToken()
		if len(tok) != 32 || seen[tok] {
			t.Fatalf("token %q: want 32 hexadecimal digits that never repeat", tok)
		}
		seen[tok] = true
	}
}
