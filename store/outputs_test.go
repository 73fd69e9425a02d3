package store_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/store"
)

// The outputs of a run's jobs have a bound together, in UTF-16: who comes with more fails, and keeps none.
func TestOutputsOfARun(t *testing.T) {
	eachFresh(t, func(t *testing.T, e *env) {
		e.open(store.Config{MaxOutputs: 5000})
		outputsOfARun(t, e)
	})
}

func outputsOfARun(t *testing.T, e *env) {
	const large = 1000 // characters, of two bytes each
	var jobs []tgr.Job
	for i := range 5 {
		jobs = append(jobs, work(fmt.Sprint("j", i)))
	}
	run := e.planned("d", append(jobs, caller("call"))...)
	for i := range 5 {
		e.expand(run, fmt.Sprint("j", i), 1, 0)
	}
	for i, r := range []struct {
		conclusion tgr.Conclusion
		want       string
	}{{tgr.Success, "success"}, {tgr.Failure, "failure"}, {tgr.Success, "failure user the outputs of the run's jobs have more than 5000 bytes, in UTF-16, with those of this one, which are dropped"},
		{tgr.TimedOut, "timed_out"}} {
		l := e.claim(tgr.WorkJob)
		e.must(e.Finish(e.ctx, l.Job.ID, l.Token, store.JobResult{Conclusion: r.conclusion, Outputs: map[string]string{"o": strings.Repeat("é", large)}}))
		j := must(e.Store.Job(e.ctx, l.Job.ID))
		if got := strings.TrimSpace(fmt.Sprint(j.Conclusion, " ", j.Blame, " ", j.Reason)); got != r.want || (len(j.Outputs) == 1) != (i < 2) {
			t.Errorf("job %d: %s with %d outputs, want %s", i, got, len(j.Outputs), r.want)
		}
	}
	l := e.claim(tgr.WorkJob)
	e.must(e.Finish(e.ctx, l.Job.ID, l.Token, store.JobResult{Conclusion: tgr.Success, Outputs: map[string]string{"o": "small"}}))
	if j := must(e.Store.Job(e.ctx, l.Job.ID)); j.Conclusion != tgr.Success || j.Outputs["o"] != "small" {
		t.Errorf("one for which there is room: %s, %v", j.Conclusion, j.Outputs)
	}
	// What a call puts out counts, too.
	e.must(e.Settle(e.ctx, run, func(_ tgr.Run, jobs []tgr.Job) (store.Change, error) {
		return store.Change{Expand: map[tgr.JobID]store.Expansion{byKey(jobs, "call")[0].ID: {Jobs: []tgr.Job{{Name: "call", Total: 1, Instance: json.RawMessage(`{}`)}}}}}, nil
	}))
	e.must(e.Settle(e.ctx, run, func(_ tgr.Run, jobs []tgr.Job) (store.Change, error) {
		return store.Change{End: map[tgr.JobID]store.JobResult{byKey(jobs, "call")[0].ID: {Conclusion: tgr.Success, Outputs: map[string]string{"o": strings.Repeat("x", large)}}}}, nil
	}))
	if j := e.job(run, "call"); j.Conclusion != tgr.Failure || len(j.Outputs) > 0 {
		t.Errorf("the call: %s with %d outputs", j.Conclusion, len(j.Outputs))
	}
	// A new attempt has room of its own but for what it carries over.
	must(e.Rerun(e.ctx, run, store.Again{Job: e.job(run, "j2 (0)").ID}))
	l = e.claim(tgr.WorkJob)
	e.must(e.Finish(e.ctx, l.Job.ID, l.Token, store.JobResult{Conclusion: tgr.Success, Outputs: map[string]string{"o": strings.Repeat("x", large)}}))
	if j := must(e.Store.Job(e.ctx, l.Job.ID)); j.Conclusion != tgr.Failure {
		t.Errorf("again: %s, while those of others are carried over", j.Conclusion)
	}
}
