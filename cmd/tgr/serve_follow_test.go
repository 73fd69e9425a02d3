package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/github/githubtest"
	"github.com/terraphim/tgr/web"
)

// following is a workflow that starts when another one has ended.
func following(name, after string) string {
	return fmt.Sprintf(`name: %s
on: {workflow_run: {workflows: [%s], types: [completed]}}
jobs: {a: {runs-on: linux, steps: [{run: 'true'}]}}
`, name, after)
}

// followedFiles are workflows A to E, each of which follows the one before.
func followedFiles() map[string]string {
	return map[string]string{
		workflowDir + "/a.yml": `name: A
on: [push, pull_request]
jobs:
  a:
    runs-on: linux
    steps:
      - run: 'echo "secret [${{ secrets.DEPLOY }}]"'
      - run: exit ${{ contains(github.event.head_commit.message, 'bad') && 1 || 0 }}
`,
		workflowDir + "/b.yml": `name: B
on:
  workflow_run:
    workflows: [A]
    types: [completed]
    branches-ignore: [ignored]
jobs:
  b:
    runs-on: linux
    env: {RUN: "${{ toJSON(github.event.workflow_run) }}"}
    steps:
      - run: |
          echo "${{ github.event.action }} ${{ github.event.workflow.name }} ${{ github.event.workflow_run.id }} ${{ github.event.workflow_run.event }}"
          echo "${{ github.event.workflow_run.conclusion }} at ${{ github.event.workflow_run.head_sha }} of ${{ github.event.workflow_run.head_branch }}"
          echo "from ${{ github.event.workflow_run.head_repository.full_name }}, pulls ${{ toJSON(github.event.workflow_run.pull_requests.*.number) }}"
          echo "${{ github.event_name }} at ${{ github.sha }} of ${{ github.ref }}, head [${{ github.head_ref }}], secret [${{ secrets.DEPLOY }}]"
`,
		workflowDir + "/c.yml": following("C", "B"), workflowDir + "/d.yml": following("D", "C"), workflowDir + "/e.yml": following("E", "D"),
	}
}

// named finds the latest run of a workflow.
func named(runs []web.RunDetail, workflow string) web.RunDetail {
	for _, r := range runs {
		if r.WorkflowName == workflow {
			return r
		}
	}
	return web.RunDetail{}
}

// The end of one workflow's run starts another, on the default branch, up to three levels on, and nothing else.
func TestServeWorkflowRun(t *testing.T) {
	s := openSite(t, "TGR_FORK_APPROVAL=none")
	repo := s.repo("acme/chain", followedFiles())
	s.completed(s.send("push", repo.PushEvent("refs/heads/main", githubtest.Zero, repo.SHA("main")))) // of which no more is known here yet
	runs := s.runsOf("workflow_run", 3)
	for _, name := range []string{"B", "C", "D"} {
		if r := named(runs, name); r.Conclusion != tgr.Success {
			t.Errorf("%s: %s, %s", name, r.Conclusion, r.Reason)
		}
	}
	s.tgr(newSecretCmd(), "hunter2", "set", "DEPLOY", "-R", "acme/chain")

	// A failure on another branch, which the follower's commit is not of.
	main := repo.SHA("main")
	bad, err := repo.Commit("topic", "bad", map[string]string{"x": "1"})
	if err != nil {
		t.Fatal(err)
	}
	first := s.completed(s.send("push", repo.PushEvent("refs/heads/topic", main, bad)))[0]
	b := named(s.runsOf("workflow_run", 6), "B")
	s.says(b, fmt.Sprintf("completed A %d push", first.ID), "failure at "+bad+" of topic", "from acme/chain, pulls []",
		"workflow_run at "+main+" of refs/heads/main, head [], secret [***]")
	if list := s.tgr(newRunsCmd(), "", "list"); strings.Count(list, " workflow_run ") != 6 {
		t.Errorf("tgr runs list:\n%s", list)
	}

	// A pull request of a fork gets no secret; what follows its run does.
	fork, err := s.hub.Fork(repo, "eve/chain")
	if err != nil {
		t.Fatal(err)
	}
	head, err := fork.Commit("patch", "patch", map[string]string{"y": "1"})
	if err != nil {
		t.Fatal(err)
	}
	pull, err := repo.OpenPull(fork, "patch", "main")
	if err != nil {
		t.Fatal(err)
	}
	first = s.completed(s.send("pull_request", pull.Event("opened")))[0]
	s.says(first, "secret []")
	b = named(s.runsOf("workflow_run", 9), "B")
	s.says(b, fmt.Sprintf("completed A %d pull_request", first.ID), "success at "+head+" of patch", "from eve/chain, pulls []", "secret [***]")

	// A filter says no, and no run is made to say it.
	ignored, err := repo.Commit("ignored", "x", map[string]string{"z": "1"})
	if err != nil {
		t.Fatal(err)
	}
	s.completed(s.send("push", repo.PushEvent("refs/heads/ignored", main, ignored)))
	s.runsOf("workflow_run", 9)
}

// says checks the log of a run.
func (s *site) says(r web.RunDetail, parts ...string) {
	s.t.Helper()
	log := s.logOf(r)
	for _, part := range parts {
		if !strings.Contains(log, part) {
			s.t.Errorf("the log of run %d (%s, %s) lacks %q:\n%s", r.ID, r.WorkflowName, r.Reason, part, log)
		}
	}
}

// A server that is killed at the end of a run has the next one start what follows it, once.
func TestServeWorkflowRunKilled(t *testing.T) {
	s := openSite(t)
	repo := s.repo("acme/chain", map[string]string{
		workflowDir + "/a.yml": trivialWorkflow,
		workflowDir + "/b.yml": following("B", "trivial"),
	})
	s.completed(s.send("push", repo.PushEvent("refs/heads/main", githubtest.Zero, repo.SHA("main"))))
	for n := 1; n <= 3; n++ {
		s.kill()
		s.start()
		if r := s.runsOf("workflow_run", n)[0]; r.Conclusion != tgr.Success {
			t.Errorf("run %d: %s, %s", r.ID, r.Conclusion, r.Reason)
		}
		s.completed(s.push(repo, map[string]string{"n": fmt.Sprint(n)}))
	}
	s.runsOf("workflow_run", 4)
}
