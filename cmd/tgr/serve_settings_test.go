package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/github/githubtest"
	"github.com/terraphim/tgr/web"
)

// tgr runs a command against the site's server with a standard input, and returns what it said.
func (s *site) tgr(cmd *cobra.Command, stdin string, args ...string) string {
	s.t.Helper()
	out, status := s.tries(cmd, stdin, args...)
	if status != 0 {
		s.t.Fatalf("tgr %s %q: exit status %d: %s", cmd.Name(), args, status, out)
	}
	return out
}

func (s *site) tries(cmd *cobra.Command, stdin string, args ...string) (string, int) {
	s.t.Helper()
	var out bytes.Buffer
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SetArgs(append(args, "--server", s.url))
	err := cmd.ExecuteContext(s.t.Context())
	if err == nil {
		return out.String(), 0
	}
	var coded interface{ ExitCode() int }
	if !errors.As(err, &coded) {
		s.t.Fatalf("tgr %s %q: an error without an exit status: %v", cmd.Name(), args, err)
	}
	return out.String() + err.Error(), coded.ExitCode()
}

// forkPull opens a pull request of a fork of acme/bridge, with one commit.
func (s *site) forkPull(repo *githubtest.Repo) *githubtest.Pull {
	s.t.Helper()
	fork, err := s.hub.Fork(repo, "eve/bridge")
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := fork.Commit("topic", "topic", map[string]string{"c": "1"}); err != nil {
		s.t.Fatal(err)
	}
	pull, err := repo.OpenPull(fork, "topic", "main")
	if err != nil {
		s.t.Fatal(err)
	}
	return pull
}

// waits waits until a run of a delivery waits for something, and returns it.
func (s *site) waits(id tgr.DeliveryID) web.RunDetail {
	s.t.Helper()
	var got web.RunDetail
	s.await("a run that waits for approval", func() bool {
		list, err := s.client.Runs(s.t.Context(), web.Filter{Delivery: id})
		if err != nil {
			s.t.Fatal(err)
		}
		for _, r := range list.Runs {
			if got, err = s.client.Run(s.t.Context(), r.ID, 0); err != nil {
				s.t.Fatal(err)
			}
			gated := slices.ContainsFunc(got.Jobs, func(j tgr.Job) bool { return j.Gated && strings.Contains(j.Reason, "approval") })
			if len(web.Waiting(got.Run, got.Jobs)) > 0 && (gated || got.Hold != "") {
				return true
			}
		}
		return false
	})
	return got
}

func (s *site) logOf(d web.RunDetail) string {
	s.t.Helper()
	var all strings.Builder
	for _, j := range d.Jobs {
		if j.Kind != tgr.WorkJob {
			continue
		}
		out, err := s.client.Log(s.t.Context(), j.ID, web.LogOptions{})
		if err != nil {
			continue // a job that did not run has none
		}
		var b bytes.Buffer
		if _, err := b.ReadFrom(out); err != nil {
			s.t.Fatal(err)
		}
		out.Close()
		all.Write(b.Bytes())
	}
	return all.String()
}

const settledWorkflow = `
on: [push, pull_request]
permissions: {contents: read}
jobs:
  build:
    runs-on: ubuntu-latest
    steps:
      - run: echo "region ${{ vars.REGION }}, token [${{ secrets.DEPLOY }}], again [${{ secrets.ACCOUNT }}]"
      - env: {GH: "${{ github.token }}"}
        run: |
          ask() { curl -s -o /dev/null -w '%{http_code}' -H "Authorization: Bearer $GH" "$GITHUB_API_URL/repos/$1"; }
          echo "own $(ask "$GITHUB_REPOSITORY"), other $(ask acme/other), status $(curl -s -o /dev/null -w '%{http_code}' -X POST -d '{"state":"success"}' -H "Authorization: Bearer $GH" "$GITHUB_API_URL/repos/$GITHUB_REPOSITORY/statuses/$GITHUB_SHA")"
  deploy:
    needs: build
    environment: production
    runs-on: ubuntu-latest
    steps: [{run: 'test "${{ secrets.DEPLOY }}" = "of production" && echo "region ${{ vars.REGION }}"'}]
`

// Secrets and variables of each scope, an environment that is approved, and tokens that are narrowed and revoked.
func TestServeSettings(t *testing.T) {
	s := openSite(t)
	repo := s.repo("acme/bridge", map[string]string{".github/workflows/ci.yml": settledWorkflow})
	s.repo("acme/other", map[string]string{"a": "b"})
	file := filepath.Join(t.TempDir(), "value")
	if err := os.WriteFile(file, []byte("of production"), 0o600); err != nil {
		t.Fatal(err)
	}
	// The repository has sent nothing yet: GitHub is asked for it.
	said := s.tgr(newSecretCmd(), "of the repository\n", "set", "deploy", "-R", "acme/bridge")
	said += s.tgr(newSecretCmd(), "", "set", "DEPLOY", "-R", "acme/bridge", "-e", "Production", "-f", file)
	said += s.tgr(newSecretCmd(), "of the account", "set", "ACCOUNT", "-o", "acme")
	s.tgr(newVarCmd(), "", "set", "REGION", "eu", "-o", "acme")
	s.tgr(newVarCmd(), "us\n", "set", "REGION", "-R", "acme/bridge", "-e", "production")
	s.tgr(newEnvironmentCmd(), "", "set", "production", "-R", "acme/bridge", "--branch", "main", "--approval")
	said += s.tgr(newSecretCmd(), "", "list", "-R", "acme/bridge") + s.tgr(newSecretCmd(), "", "list", "-R", "acme/bridge", "--json")
	if strings.Contains(said, "of the") && strings.Contains(said, "of the repository\n") || strings.Contains(said, "of production") {
		t.Errorf("a value was told:\n%s", said)
	}
	if !strings.Contains(said, "DEPLOY  ") {
		t.Errorf("the list does not name the secret:\n%s", said)
	}
	if out := s.tgr(newEnvironmentCmd(), "", "list", "-R", "acme/bridge"); out != "production: branch main, approval\n" {
		t.Errorf("environments: %q", out)
	}
	for _, args := range [][]string{{"set", "GITHUB_X", "-R", "acme/bridge"}, {"set", "A"}, {"set", "A", "-o", "acme", "-e", "x"}, {"set", "A", "-R", "no/where"}, {"rm", "GONE", "-R", "acme/bridge"}} {
		if out, status := s.tries(newSecretCmd(), "x", args...); status != 2 {
			t.Errorf("tgr secret %q: exit status %d: %s", args, status, out)
		}
	}
	if out := s.tgr(newSecretCmd(), "", "rotate"); !strings.Contains(out, "(3)") {
		t.Errorf("rotate: %s", out)
	}

	delivery := s.send("push", repo.PushEvent("refs/heads/main", githubtest.Zero, repo.SHA("main")))
	d := s.waits(delivery)
	if out := s.tgr(newRunsCmd(), "", "show", d.ID.String()); !strings.Contains(out, "to go on: tgr approve "+d.ID.String()+" production") ||
		!strings.Contains(out, "waits for approval of the environment production") {
		t.Errorf("tgr runs show:\n%s", out)
	}
	if out := s.tgr(newApproveCmd(), "", d.ID.String(), "--comment", "fine"); !strings.Contains(out, "environment production approved") {
		t.Errorf("tgr approve: %s", out)
	}
	d = s.completed(delivery)[0]
	log := s.logOf(d)
	for _, want := range []string{"region eu, token [***], again [***]", "own 200, other 404, status 403", "region us", "GITHUB_TOKEN permissions: contents: read"} {
		if !strings.Contains(log, want) {
			t.Errorf("the logs have no %q:\n%s", want, log)
		}
	}
	if d.Conclusion != tgr.Success || len(d.Approvals) != 1 || d.Approvals[0].Comment != "fine" {
		t.Errorf("run %s: %+v", d.Conclusion, d.Approvals)
	}
	revoked := 0
	for _, tok := range s.hub.InstallationTokens() {
		if slices.Equal(tok.Repositories, []string{"bridge"}) && tok.Permissions["contents"] == "read" {
			if !tok.Revoked {
				t.Errorf("a token of a job was not revoked: %+v", tok)
			}
			revoked++
		}
	}
	if revoked != 2 {
		t.Errorf("%d tokens were made for 2 jobs", revoked)
	}
	if strings.Contains(s.logged(), "of production") || strings.Contains(s.logged(), "of the account") {
		t.Error("the server's log has a value")
	}

	// A branch that may not deploy.
	if _, err := repo.Commit("topic", "topic", map[string]string{"b": "1"}); err != nil {
		t.Fatal(err)
	}
	d = s.completed(s.send("push", repo.PushEvent("refs/heads/topic", githubtest.Zero, repo.SHA("topic"))))[0]
	if i := slices.IndexFunc(d.Jobs, func(j tgr.Job) bool { return j.Key == "deploy" }); d.Conclusion != tgr.Failure || !strings.Contains(d.Jobs[i].Reason, "does not allow refs/heads/topic") {
		t.Errorf("run %s: %+v", d.Conclusion, d.Jobs[i])
	}
}

// A pull request from a stranger's fork waits, and then gets neither secrets nor a token that writes.
func TestServeForks(t *testing.T) {
	s := openSite(t)
	repo := s.repo("acme/bridge", map[string]string{".github/workflows/ci.yml": `
on: pull_request
permissions: write-all
jobs:
  build:
    runs-on: ubuntu-latest
    steps: [{run: 'echo "secret [${{ secrets.DEPLOY }}] from ${{ github.secret_source }}"'}]
`})
	s.tgr(newSecretCmd(), "hunter2", "set", "DEPLOY", "-R", "acme/bridge")
	pull := s.forkPull(repo)
	pull.Association = "FIRST_TIME_CONTRIBUTOR"
	delivery := s.send("pull_request", pull.Event("opened"))
	d := s.waits(delivery)
	if !strings.Contains(d.Hold, "a pull request from a fork") || len(s.hub.InstallationTokens()) > 2 {
		t.Errorf("on hold for %q", d.Hold)
	}
	if out := s.tgr(newApproveCmd(), "", d.ID.String()); !strings.Contains(out, "approved") {
		t.Errorf("tgr approve: %s", out)
	}
	d = s.completed(delivery)[0]
	log := s.logOf(d)
	if d.Conclusion != tgr.Success || !strings.Contains(log, "secret [] from None") {
		t.Errorf("run %s:\n%s", d.Conclusion, log)
	}
	if strings.Contains(log, ": write") || !strings.Contains(log, "contents: read") {
		t.Errorf("the token of a fork may write:\n%s", log)
	}

	pull.Association = "NONE"
	delivery = s.send("pull_request", pull.Event("reopened"))
	d = s.waits(delivery)
	s.tgr(newApproveCmd(), "", d.ID.String(), "--reject")
	if d = s.completed(delivery)[0]; d.Conclusion != tgr.Cancelled || !strings.Contains(d.Reason, "rejected by") {
		t.Errorf("rejected: %s, %q", d.Conclusion, d.Reason)
	}
}

// What a private repository shares with those of its owner, a pull request from a fork does not get: neither as an action,
// which another action names, nor as a workflow, and also where a run of the repository has left it in the cache.
func TestServeForksReadNoPrivateRepository(t *testing.T) {
	s := openSite(t)
	private := s.repo("acme/private", map[string]string{
		"action.yml": "runs: {using: composite, steps: [{shell: bash, run: echo the action ran}]}", "plans.txt": "the plans",
		".github/workflows/shared.yml": "on: workflow_call\njobs: {a: {runs-on: ubuntu-latest, steps: [{run: echo the workflow ran}]}}",
	})
	private.SetPrivate(true)
	const step = "runs: {using: composite, steps: [{uses: acme/private%s}]}"
	repo := s.repo("acme/bridge", map[string]string{
		"byref/action.yml": fmt.Sprintf(step, "@main"), "bysha/action.yml": fmt.Sprintf(step, "@"+private.SHA("main")),
		".github/workflows/action.yml": `
on: [push, pull_request]
jobs:
  build:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - uses: ./byref
      - {if: always(), uses: ./bysha}
      - {if: always(), run: 'find "$(dirname "$RUNNER_TEMP")" -name plans.txt -exec cat {} +'}
`, ".github/workflows/call.yml": "on: [push, pull_request]\njobs: {a: {uses: acme/private/.github/workflows/shared.yml@main}}\n",
	})
	repo.SetPrivate(true)
	ran := func(id tgr.DeliveryID) (log string, ends map[string]string) {
		ends = map[string]string{}
		for _, d := range s.completed(id) {
			log += s.logOf(d)
			ends[filepath.Base(d.WorkflowFile)] = string(d.Conclusion) + " " + d.Reason
		}
		return log, ends
	}
	log, ends := ran(s.send("push", repo.PushEvent("refs/heads/main", githubtest.Zero, repo.SHA("main"))))
	if strings.Count(log, "the action ran") < 2 || !strings.Contains(log, "the plans") || !strings.Contains(log, "the workflow ran") {
		t.Errorf("a push: %v:\n%s", ends, log)
	}
	pull := s.forkPull(repo)
	log, ends = ran(s.send("pull_request", pull.Event("opened")))
	const refusal = "acme/private: not found, or a run of a fork, or of Dependabot, may not read it"
	if strings.Count(log, refusal) < 2 || !strings.HasPrefix(ends["action.yml"], "failure") {
		t.Errorf("the run of a fork: %v:\n%s", ends, log)
	}
	for _, never := range []string{"the action ran", "the plans", "the workflow ran"} {
		if strings.Contains(log, never) {
			t.Errorf("the run of a fork was given %q:\n%s", never, log)
		}
	}
	if got := ends["call.yml"]; !strings.HasPrefix(got, string(tgr.StartupFailure)) || !strings.Contains(got, refusal) {
		t.Errorf("a fork's call of the workflow: %s", got)
	}
}

// A re-run repeats what failed; outputs of what did not run again are used, and the first attempt stays as it was.
func TestServeRerunOfACall(t *testing.T) {
	s := openSite(t)
	flag := filepath.Join(t.TempDir(), "flag")
	repo := s.repo("acme/bridge", map[string]string{".github/workflows/ci.yml": `
on: push
jobs:
  build:
    runs-on: ubuntu-latest
    outputs: {at: "${{ steps.s.outputs.at }}"}
    steps: [{id: s, run: 'echo "at=$(date +%s%N)" >> "$GITHUB_OUTPUT"'}]
  deploy:
    needs: build
    uses: ./.github/workflows/deploy.yml
    with: {at: "${{ needs.build.outputs.at }}"}
`, ".github/workflows/deploy.yml": `
on: {workflow_call: {inputs: {at: {type: string}}}}
jobs:
  good: {runs-on: ubuntu-latest, outputs: {x: y}, steps: [{run: echo good}]}
  flaky: {needs: good, runs-on: ubuntu-latest, steps: [{run: 'echo "built at ${{ inputs.at }}, x is ${{ needs.good.outputs.x }}"; test -e ` + flag + `'}]}
`})
	delivery := s.send("push", repo.PushEvent("refs/heads/main", githubtest.Zero, repo.SHA("main")))
	first := s.completed(delivery)[0]
	if first.Conclusion != tgr.Failure {
		t.Fatalf("the first attempt: %s", first.Conclusion)
	}
	if err := os.WriteFile(flag, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if out := s.tgr(newRunsCmd(), "", "rerun", first.ID.String(), "--failed"); !strings.Contains(out, "attempt 2") {
		t.Errorf("rerun: %s", out)
	}
	second := s.completed(delivery)[0]
	if second.Conclusion != tgr.Success || second.Attempt != 2 {
		t.Fatalf("attempt %d: %s", second.Attempt, second.Conclusion)
	}
	var ran []string
	for _, j := range second.Jobs {
		if j.Origin == 0 {
			ran = append(ran, j.Key)
		}
	}
	if want := []string{"deploy", "deploy/flaky"}; !slices.Equal(ran, want) {
		t.Errorf("ran again: %q, want %q", ran, want)
	}
	line := func(d web.RunDetail) string {
		for l := range strings.Lines(s.logOf(d)) {
			if strings.HasPrefix(l, "built at") {
				return l
			}
		}
		return ""
	}
	again, err := s.client.Run(t.Context(), first.ID, 1)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := line(again), line(second); a == "" || a != b {
		t.Errorf("the first attempt says %q, the second %q", a, b)
	}
}

// "Re-run", "Re-run failed checks" and "Re-run all checks" at GitHub.
func TestServeRerequested(t *testing.T) {
	s := openSite(t)
	files := map[string]string{".github/workflows/ci.yml": `
on: push
jobs:
  good: {runs-on: ubuntu-latest, steps: [{run: echo good}]}
  bad: {runs-on: ubuntu-latest, steps: [{run: exit 1}]}
  worse: {runs-on: ubuntu-latest, steps: [{run: exit 2}]}
`}
	repo, other := s.repo("acme/bridge", files), s.repo("acme/other", files)
	delivery := s.send("push", repo.PushEvent("refs/heads/main", githubtest.Zero, repo.SHA("main")))
	run := s.completed(delivery)[0]
	s.await("the check runs", func() bool {
		done := 0
		for _, c := range s.hub.CheckRuns("acme/bridge") {
			if c.Status == "completed" {
				done++
			}
		}
		return done == 3
	})
	check := func(name string) githubtest.CheckRun {
		checks := s.hub.CheckRuns("acme/bridge")
		for i := len(checks) - 1; i >= 0; i-- {
			if strings.Contains(checks[i].Name, " / "+name+" ") {
				return checks[i]
			}
		}
		t.Fatalf("there is no check run of %s: %+v", name, checks)
		return githubtest.CheckRun{}
	}
	ran := func(attempt int) []string {
		t.Helper()
		var d web.RunDetail
		s.await("the attempt", func() bool {
			var err error
			if d, err = s.client.Run(t.Context(), run.ID, 0); err != nil {
				t.Fatal(err)
			}
			return d.Attempt == attempt && d.Status.Done()
		})
		var out []string
		for _, j := range d.Jobs {
			if j.Origin == 0 {
				out = append(out, j.Key)
			}
		}
		return out
	}
	for _, name := range []string{"bad", "worse"} { // of failed checks one event each
		s.send("check_run", repo.CheckRunEvent("rerequested", check(name)))
	}
	if got := ran(2); !slices.Equal(got, []string{"bad", "worse"}) {
		t.Errorf("re-run failed checks: %q ran", got)
	}
	s.send("check_run", repo.CheckRunEvent("rerequested", check("good")))
	if got := ran(3); !slices.Equal(got, []string{"good"}) {
		t.Errorf("re-run of one check: %q ran", got)
	}
	// Of another repository, of another action: nothing.
	s.send("check_run", other.CheckRunEvent("rerequested", check("good")))
	s.send("check_run", repo.CheckRunEvent("completed", check("good")))
	s.send("check_suite", repo.CheckSuiteEvent("rerequested", run.Event.SHA))
	if got := ran(4); !slices.Equal(got, []string{"good", "bad", "worse"}) {
		t.Errorf("re-run all checks: %q ran", got)
	}
}

// A workflow of another repository, by branch, tag and commit; and one that is not there.
func TestServeRemoteWorkflow(t *testing.T) {
	s := openSite(t)
	shared := s.repo("acme/shared", map[string]string{".github/workflows/outer.yml": `
on: {workflow_call: {inputs: {who: {type: string}}}}
jobs: {inner: {uses: ./.github/workflows/inner.yml, with: {who: "${{ inputs.who }}"}}}
`, ".github/workflows/inner.yml": `
on: {workflow_call: {inputs: {who: {type: string}}}}
jobs: {greet: {runs-on: ubuntu-latest, steps: [{run: 'echo "hello ${{ inputs.who }}, from ${{ job.workflow_ref }} at ${{ job.workflow_sha }} for ${{ github.repository }}"'}]}}
`})
	sha := shared.SHA("main")
	if err := shared.Tag("v1", sha, ""); err != nil {
		t.Fatal(err)
	}
	repo := s.repo("acme/bridge", map[string]string{".github/workflows/ci.yml": `
on: push
jobs:
  branch: {uses: acme/shared/.github/workflows/outer.yml@main, with: {who: branch}}
  tag: {uses: acme/shared/.github/workflows/outer.yml@v1, with: {who: tag}}
  commit: {uses: acme/shared/.github/workflows/outer.yml@` + sha + `, with: {who: commit}}
`, ".github/workflows/gone.yml": "on: push\njobs: {a: {uses: acme/nowhere/.github/workflows/x.yml@v1}}\n",
		".github/workflows/noref.yml": "on: push\njobs: {a: {uses: acme/shared/.github/workflows/outer.yml@v9}}\n"})
	runs := s.completed(s.send("push", repo.PushEvent("refs/heads/main", githubtest.Zero, repo.SHA("main"))))
	reasons := map[string]string{}
	var log string
	for _, r := range runs {
		reasons[filepath.Base(r.WorkflowFile)] = string(r.Conclusion) + " " + r.Reason
		log += s.logOf(r)
	}
	for file, want := range map[string]string{"ci.yml": "success", "gone.yml": "acme/nowhere", "noref.yml": "acme/shared has no branch or tag v9"} {
		if !strings.Contains(reasons[file], want) {
			t.Errorf("%s: %q, want %q", file, reasons[file], want)
		}
	}
	const inner = "from acme/shared/.github/workflows/inner.yml@"
	for _, want := range []string{"hello branch, " + inner + "refs/heads/main at " + sha + " for acme/bridge",
		"hello tag, " + inner + "refs/tags/v1 at " + sha, "hello commit, " + inner + sha + " at " + sha} {
		if !strings.Contains(log, want) {
			t.Errorf("the logs have no %q:\n%s", want, log)
		}
	}
}

// A pull request's webhook also starts what waits for pull_request_target: from the default branch as it is now, whatever the
// pull request says or is for, with secrets, and not with the code of the fork.
func TestServePullRequestTarget(t *testing.T) {
	s := openSite(t)
	const both = `
name: Both
on: [pull_request, pull_request_target]
jobs:
  show:
    runs-on: ubuntu-latest
    steps:
      - run: 'echo "[${{ github.event_name }} ${{ github.ref }} ${{ github.base_ref }} secret ${{ secrets.DEPLOY != '''' }}]"'
`
	const target = `
name: Target
on: {pull_request_target: {types: [opened, labeled], branches: [old], paths: [c]}}
jobs:
  show:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - run: 'echo "[sha ${{ github.sha }} head $(git rev-parse HEAD) at $(cat VERSION)]"'
      - {uses: actions/checkout@v4, with: {ref: '${{ github.event.pull_request.head.sha }}'}}
`
	repo := s.repo("acme/gate", map[string]string{".github/workflows/both.yml": both, ".github/workflows/target.yml": "on: pull_request_target\njobs: {old: {runs-on: ubuntu-latest, steps: [{run: echo an old hole}]}}\n", "VERSION": "1"})
	if err := repo.Branch("old", repo.SHA("main")); err != nil {
		t.Fatal(err)
	}
	s.tgr(newSecretCmd(), "hunter2", "set", "DEPLOY", "-R", "acme/gate")
	tip, err := repo.Commit("main", "fixed", map[string]string{".github/workflows/target.yml": target, "VERSION": "2"})
	if err != nil {
		t.Fatal(err)
	}
	fork, err := s.hub.Fork(repo, "eve/gate")
	if err != nil {
		t.Fatal(err)
	}
	if err := fork.Branch("topic", repo.SHA("old")); err != nil {
		t.Fatal(err)
	}
	if _, err := fork.Commit("topic", "topic", map[string]string{"c": "1", ".github/workflows/target.yml": "on: pull_request_target\njobs: {evil: {runs-on: ubuntu-latest, steps: [{run: echo evil}]}}\n"}); err != nil {
		t.Fatal(err)
	}
	pull, err := repo.OpenPull(fork, "topic", "old")
	if err != nil {
		t.Fatal(err)
	}
	pull.Association = "CONTRIBUTOR"
	got := map[string]web.RunDetail{}
	logs := map[string]string{}
	for _, d := range s.completed(s.send("pull_request", pull.Event("opened"))) {
		got[d.WorkflowName], logs[d.WorkflowName] = d, s.logOf(d)
	}
	for name, want := range map[string]string{
		"Both":                       "[pull_request refs/pull/1/merge old secret false]",
		"Both (pull_request_target)": "[pull_request_target refs/heads/main old secret true]",
		"Target":                     "[sha " + tip + " head " + tip + " at 2]",
	} {
		if !strings.Contains(logs[name], want) {
			t.Errorf("%s: no %q in\n%s", name, want, logs[name])
		}
	}
	if len(got) != 3 {
		t.Errorf("%d runs, want 3: %v", len(got), slices.Collect(maps.Keys(got)))
	}
	if d := got["Both (pull_request_target)"]; d.Event.Name != "pull_request_target" || d.Conclusion != tgr.Success {
		t.Errorf("the run of the target: %s, %s", d.Event.Name, d.Conclusion)
	}
	if d := got["Target"]; d.Conclusion != tgr.Failure || !strings.Contains(logs["Target"], "refusing to check out fork pull request code") {
		t.Errorf("the fork's code in a trusted run: %s\n%s", d.Conclusion, logs["Target"])
	}
	if list := s.tgr(newRunsCmd(), "", "list", "--event", "pull_request_target"); strings.Count(list, "\n") != 3 { // and a heading
		t.Errorf("runs of pull_request_target:\n%s", list)
	}

	// Where no workflow is for the pull request itself, the run of the webhook is the target's.
	again := s.completed(s.send("pull_request", pull.Event("labeled")))
	if len(again) != 1 || again[0].WorkflowName != "Target" || again[0].Event.Name != "pull_request_target" || again[0].Number != 2 {
		t.Errorf("labeled: %+v", again)
	}
	if list := s.tgr(newRunsCmd(), "", "list", "--event", "pull_request_target"); strings.Count(list, "\n") != 4 {
		t.Errorf("runs of pull_request_target:\n%s", list)
	}

	// What the head commit says is for the workflows of the pull request alone. It is in no webhook.
	if _, err := fork.Commit("topic", "docs [skip ci]", map[string]string{"c": "2"}); err != nil {
		t.Fatal(err)
	}
	if err := pull.Sync(); err != nil {
		t.Fatal(err)
	}
	skipped := s.completed(s.send("pull_request", pull.Event("synchronize")))
	if len(skipped) != 1 || skipped[0].WorkflowName != "Both" || skipped[0].Event.Name != "pull_request_target" {
		t.Errorf("[skip ci]: %+v", skipped)
	}
}

// A payload with the id of one repository and the name of another does not bring the one's secrets to the other's code, and one
// of a repository that GitHub does not show fails at once, with that reason.
func TestServeIdentity(t *testing.T) {
	s := openSite(t)
	const wf = "on: push\njobs: {show: {runs-on: ubuntu-latest, steps: [{run: 'echo \"secret [${{ secrets.DEPLOY }}]\"'}]}}\n"
	victim := s.repo("acme/victim", map[string]string{".github/workflows/ci.yml": wf})
	evil := s.repo("eve/evil", map[string]string{".github/workflows/ci.yml": strings.ReplaceAll(wf, "secret", "stolen")})
	s.tgr(newSecretCmd(), "hunter2", "set", "DEPLOY", "-R", "acme/victim")
	s.completed(s.send("push", victim.PushEvent("refs/heads/main", githubtest.Zero, victim.SHA("main"))))

	id := func(r *githubtest.Repo) string { return fmt.Sprintf(`"id":%d`, r.ID) }
	push := string(evil.PushEvent("refs/heads/main", githubtest.Zero, evil.SHA("main")))
	forged := strings.Replace(push, id(evil), id(victim), 1)
	if forged == push {
		t.Fatalf("the payload has no %s:\n%s", id(evil), push)
	}
	d := s.completed(s.send("push", []byte(forged)))[0]
	if d.Conclusion != tgr.Failure || !strings.Contains(d.Reason, "GitHub that this is") || len(d.Jobs) > 1 {
		t.Errorf("forged: %s, %q, %d jobs", d.Conclusion, d.Reason, len(d.Jobs))
	}
	d = s.completed(s.send("push", []byte(strings.ReplaceAll(push, "eve/evil", "eve/unheard-of"))))[0]
	if d.Conclusion != tgr.Failure || !strings.Contains(d.Reason, "eve/unheard-of") {
		t.Errorf("unknown: %s, %q", d.Conclusion, d.Reason)
	}
	for _, j := range d.Jobs {
		if j.Tries > 1 {
			t.Errorf("%s was tried %d times", j.Key, j.Tries)
		}
	}
}
