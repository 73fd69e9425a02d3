package github

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/github/githubtest"
)

// TestMainPath takes a pull request from its webhook to the reports that GitHub shows of it, with nothing but real
// parts: sockets, signatures, git and the API.
func TestMainPath(t *testing.T) {
	d := newDesk(t, true)
	src := newSource(t, d.srv, "")
	commit(t, d.repo, "topic", map[string]string{".github/workflows/ci.yml": ciYAML, "src/x.go": "package x"})
	if err := d.pull.Sync(); err != nil {
		t.Fatal(err)
	}
	h, box := door(t, WebhookConfig{})
	hook := httptest.NewServer(h)
	defer hook.Close()
	payload := d.pull.Event("synchronize")
	answer, err := githubtest.Deliver(t.Context(), hook.URL, "pull_request", payload, secret)
	if err != nil || answer.Status != 202 || !strings.Contains(string(answer.Body), `"run_ids":[1]`) {
		t.Fatalf("%+v, %v", answer, err)
	}
	again, err := githubtest.Redeliver(t.Context(), hook.URL, "pull_request", payload, secret, answer.Delivery)
	if err != nil || again.Status != 200 || !strings.Contains(string(again.Body), `"status":"duplicate"`) {
		t.Errorf("redelivered: %+v, %v", again, err)
	}
	ev := box.got[0].Event
	if ev.SHA != d.pull.MergeSHA || ev.HeadSHA != d.pull.HeadSHA || ev.Forked || ev.Ref != "refs/pull/1/merge" {
		t.Fatalf("%+v", ev)
	}
	if _, err := src.Fetch(t.Context(), ev.Repo, ev.SHA, ev.Ref); err != nil {
		t.Fatal(err)
	}
	files, err := src.Files(t.Context(), ev.Repo, ev.SHA, ".github/workflows")
	if err != nil || len(files) != 1 || string(files[0].Data) != ciYAML {
		t.Fatalf("%+v, %v", files, err)
	}
	changed, err := src.Changed(t.Context(), ev)
	if err != nil || strings.Join(changed, " ") != ".github/workflows/ci.yml b src/x.go" {
		t.Errorf("changed %q, %v", changed, err)
	}
	dir, _ := checkout(t, src, CheckoutSpec{Repo: ev.Repo, Ref: ev.Ref, SHA: ev.SHA, Depth: 1})
	if got := content(t, dir, "src/x.go"); got != "package x" {
		t.Errorf("checked out %q", got)
	}
	run := tgr.Run{ID: 1, Attempt: 1, Event: ev, WorkflowFile: files[0].Path, WorkflowName: "CI", Status: tgr.InProgress}
	job := tgr.Job{ID: 2, Run: 1, Kind: tgr.WorkJob, Key: "a", Name: "a", Status: tgr.Queued}
	sent := map[string]string{}
	for _, step := range []func(){
		func() {},
		func() { job.Status, job.Started = tgr.InProgress, epoch },
		func() {
			job.Status, job.Conclusion, job.Finished = tgr.Completed, tgr.Failure, epoch.Add(time.Second)
			run.Status, run.Conclusion = tgr.Fold([]tgr.Outcome{{Status: job.Status, Conclusion: job.Conclusion}})
		},
	} {
		step()
		for _, o := range Reports(run, []tgr.Job{job}, options()) {
			kind, _, _ := strings.Cut(o.Key, "/")
			id, _, err := d.Deliver(t.Context(), kind, o.Body, sent[o.Key])
			if err != nil {
				t.Fatal(err)
			}
			sent[o.Key] = id
		}
	}
	statuses, checks, comments := d.srv.Statuses("ada/engine"), d.srv.CheckRuns("ada/engine"), d.srv.Comments("ada/engine")
	if len(statuses) != 3 || statuses[2].State != "failure" || statuses[2].SHA != d.pull.HeadSHA || statuses[2].Context != "CI / a (pull_request)" {
		t.Errorf("statuses %+v", statuses)
	}
	if len(checks) != 1 || checks[0].Conclusion != "failure" || checks[0].HeadSHA != d.pull.HeadSHA {
		t.Errorf("check runs %+v", checks)
	}
	if len(comments) != 1 || comments[0].Number != 1 || !strings.Contains(comments[0].Body, "❌ failure") || !strings.Contains(comments[0].Body, "--- FAIL: TestX") {
		t.Errorf("comments %+v", comments)
	}
}
