package main

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/github"
	"github.com/terraphim/tgr/github/githubtest"
	"github.com/terraphim/tgr/web"
)

// reported waits until the last word of every status and check run of a repository is final, and returns the statuses.
func (s *site) reported(repo *githubtest.Repo, n int) map[string]string {
	s.t.Helper()
	var states map[string]string
	s.await(fmt.Sprintf("%d final statuses and check runs of %s", n, repo.FullName), func() bool {
		states = map[string]string{}
		for _, st := range latest(s.hub.Statuses(repo.FullName)) {
			if st.State != "pending" {
				states[st.Context] = st.State
			}
		}
		done := 0
		for _, c := range s.hub.CheckRuns(repo.FullName) {
			if c.Status == "completed" {
				done++
			}
		}
		return len(states) == n && done == n
	})
	return states
}

// Whatever GitHub does, the last state of every job arrives, and each check run is made once.
func TestReportsSurviveGitHub(t *testing.T) {
	t.Parallel() // it mostly waits
	s := openSite(t)
	repo := s.repo("acme/flaky", map[string]string{workflowDir + "/ci.yml": "name: CI\non: push\njobs:\n  a: {runs-on: linux, steps: [{run: 'true'}]}\n  b: {needs: a, runs-on: linux, steps: [{run: 'false'}]}\n"})
	api := "/api/v3/repos/"
	s.hub.Script(githubtest.Fault{Method: "POST", Path: api, Status: 500})
	s.hub.Script(githubtest.Fault{Method: "POST", Path: api, Drop: true})
	s.hub.Script(githubtest.Fault{Method: "POST", Path: api, Status: 429, Header: http.Header{"Retry-After": {"1"}}})
	s.completed(s.push(repo, nil))

	got := s.reported(repo, 2)
	if diff := cmp.Diff(map[string]string{"CI / a (push)": "success", "CI / b (push)": "failure"}, got); diff != "" {
		t.Errorf("statuses (-want +got):\n%s", diff)
	}
}

// A fetch that fails because GitHub is not there is retried, and is our fault if it does not help; a commit that is not
// there is nobody's fault but the sender's.
func TestFetchFaults(t *testing.T) {
	t.Parallel() // it mostly waits
	s := openSite(t)
	repo := s.repo("acme/fetch", map[string]string{workflowDir + "/ci.yml": trivialWorkflow})
	git := "acme/fetch.git"
	s.hub.Script(githubtest.Fault{Path: git, Status: 502, Times: 1})
	if r := s.completed(s.push(repo, nil))[0]; r.Conclusion != tgr.Success {
		t.Errorf("after one failed fetch: %s: %s", r.Conclusion, r.Reason)
	}
	before, missing := repo.SHA("main"), strings.Repeat("a", 40)
	payload := strings.ReplaceAll(string(repo.PushEvent("refs/heads/main", githubtest.Zero, before)), before, missing)
	r := s.completed(s.send("push", []byte(payload)))[0]
	if r.Conclusion != tgr.Failure || r.Jobs[0].Blame != tgr.BlameUser || r.Jobs[0].Tries != 1 {
		t.Errorf("a commit that does not exist: %s, blame %q after %d tries: %s", r.Conclusion, r.Jobs[0].Blame, r.Jobs[0].Tries, r.Reason)
	}
	for name, f := range map[string]githubtest.Fault{"502": {Status: 502}, "a cut": {Drop: true}, "401": {Status: 401}} {
		f.Path, f.Times = git, 1000
		s.hub.Script(f)
		id := s.push(repo, map[string]string{"f": name})
		s.await(name, func() bool { return strings.Contains(job(s.first(id), "plan").Reason, "try 3 of 10 follows") })
		s.hub.Unscript()
		if r := s.completed(id)[0]; r.Conclusion != tgr.Success {
			t.Errorf("%s: %s: %s", name, r.Conclusion, r.Reason)
		}
	}
	metrics := s.get("/metrics")
	for _, want := range []string{`tgr_errors_total{blame="user"} 1`, `tgr_errors_total{blame="ours"} 7`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("/metrics has no %s:\n%s", want, grep(metrics, "tgr_errors"))
		}
	}
}

func grep(text, part string) string {
	var out []string
	for l := range strings.Lines(text) {
		if strings.Contains(l, part) {
			out = append(out, l)
		}
	}
	return strings.Join(out, "")
}

// A server that was stopped for longer than its leases last goes on as if nothing had been.
func TestStoppedServer(t *testing.T) {
	t.Parallel() // it mostly waits
	s := openSite(t)
	wait, open := gate(t)
	repo := s.repo("acme/stop", map[string]string{workflowDir + "/ci.yml": fmt.Sprintf("on: push\njobs: {a: {runs-on: linux, steps: [{run: '%s'}]}}\n", wait)})
	id := s.push(repo, nil)
	s.await("the job", func() bool { return job(s.first(id), "a").Status == tgr.InProgress })
	if err := s.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	open()
	<-time.After(3 * time.Second)
	if err := s.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if got := outcomes(s.completed(id)[0]); got[0] != "completed success" {
		t.Error(got)
	}
}

// Every kind of event that a repository sends in its life, and what becomes of it.
func TestEvents(t *testing.T) {
	s := openSite(t)
	files := map[string]string{
		workflowDir + "/push.yml": "name: Push\non: {push: {branches: [main, 'rel/**'], tags: ['v*']}}\njobs: {a: {runs-on: linux, steps: [{run: 'echo on ${{ github.ref }}'}]}}\n",
		workflowDir + "/pr.yml":   "name: PR\non: {pull_request: {types: [opened, synchronize, closed]}}\njobs: {a: {runs-on: linux, steps: [{uses: actions/checkout@v4}, {run: 'echo sha $(git rev-parse HEAD) is ${{ github.sha }}'}]}}\n",
	}
	repo := s.repo("acme/life", files)
	one := func(what string, id tgr.DeliveryID, conclusion tgr.Conclusion, reason string) web.RunDetail {
		t.Helper()
		runs := s.completed(id)
		r := runs[0]
		if len(runs) != 1 || r.Conclusion != conclusion || !strings.Contains(r.Reason, reason) {
			t.Errorf("%s: %d runs, %s: %q; want %s, reason with %q", what, len(runs), r.Conclusion, r.Reason, conclusion, reason)
		}
		return r
	}
	main := repo.SHA("main")
	one("push", s.push(repo, map[string]string{"a": "1"}), tgr.Success, "")
	if err := repo.Tag("v1", main, "first"); err != nil {
		t.Fatal(err)
	}
	one("tag", s.send("push", repo.PushEvent("refs/tags/v1", githubtest.Zero, repo.SHA("v1^{}"))), tgr.Success, "")
	if err := repo.Branch("rel/1", main); err != nil {
		t.Fatal(err)
	}
	one("new branch", s.send("push", repo.PushEvent("refs/heads/rel/1", githubtest.Zero, main)), tgr.Success, "")
	if err := repo.DeleteRef("refs/heads/rel/1"); err != nil {
		t.Fatal(err)
	}
	one("deleted branch", s.send("push", repo.PushEvent("refs/heads/rel/1", main, githubtest.Zero)), tgr.Skipped, "was deleted")
	if err := repo.Branch("topic", main); err != nil {
		t.Fatal(err)
	}
	one("other branch", s.send("push", repo.PushEvent("refs/heads/topic", githubtest.Zero, main)), tgr.Skipped, "topic")
	// A pull request: opened, pushed to, force-pushed to, closed.
	if _, err := repo.Commit("topic", "change", map[string]string{"b": "1"}); err != nil {
		t.Fatal(err)
	}
	pull, err := repo.OpenPull(nil, "topic", "main")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for i, action := range []string{"opened", "synchronize", "synchronize", "closed", "labeled"} {
		if i == 2 {
			if err := repo.Branch("topic", main); err != nil {
				t.Fatal(err)
			}
		}
		if i > 0 && i < 3 {
			if _, err := repo.Commit("topic", "change", map[string]string{"b": fmt.Sprint(i, "x")}); err != nil {
				t.Fatal(err)
			}
			if err := pull.Sync(); err != nil {
				t.Fatal(err)
			}
		}
		if action == "labeled" {
			one(action, s.send("pull_request", pull.Event(action)), tgr.Skipped, "labeled")
			continue
		}
		r := one(action, s.send("pull_request", pull.Event(action)), tgr.Success, "")
		if log := s.get(fmt.Sprintf("/api/jobs/%d/log", r.Jobs[0].ID)); !strings.Contains(log, "sha "+pull.MergeSHA+" is "+pull.MergeSHA) {
			t.Errorf("%s: want the merge %s checked out:\n%s", action, pull.MergeSHA, log)
		}
		seen[r.Event.HeadSHA] = true
	}
	if len(seen) != 3 {
		t.Errorf("%d heads were reported on, want 3", len(seen))
	}
	s.await("the comment", func() bool { return len(s.hub.Comments(repo.FullName)) > 0 })
	none := s.repo("acme/none", map[string]string{"README": "nothing here"})
	one("no workflows", s.send("push", none.PushEvent("refs/heads/main", githubtest.Zero, none.SHA("main"))), tgr.Skipped, "no workflow in .github/workflows")
	// The other content type.
	body := []byte("payload=" + url.QueryEscape(string(none.PushEvent("refs/heads/main", main, none.SHA("main")))))
	code, answer := s.post(map[string]string{"Content-Type": "application/x-www-form-urlencoded", "X-GitHub-Event": "push", "X-GitHub-Delivery": tgr.NewToken(),
		"X-Hub-Signature-256": github.Sign([]byte(testSecret), body)}, body)
	if code != http.StatusAccepted {
		t.Errorf("a form: %d %s", code, answer)
	}
	if n := len(s.hub.Comments(repo.FullName)); n != 1 {
		t.Errorf("%d comments on the pull request, want 1", n)
	}
}
