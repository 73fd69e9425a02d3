package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/github/githubtest"
	"github.com/terraphim/tgr/web"
)

// outcomes are the jobs of a run in short.
func outcomes(d web.RunDetail) []string {
	out := []string{string(d.Status) + " " + string(d.Conclusion)}
	for _, j := range d.Jobs {
		out = append(out, strings.TrimSpace(j.Name+" "+string(j.Status)+" "+string(j.Conclusion)))
	}
	slices.Sort(out[1:])
	return out
}

// push commits files and sends the webhook of it.
func (s *site) push(repo *githubtest.Repo, files map[string]string) tgr.DeliveryID {
	s.t.Helper()
	before := repo.SHA("main")
	sha, err := repo.Commit("main", "change", files)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.send("push", repo.PushEvent("refs/heads/main", before, sha))
}

// first is the first run of a delivery, as it is now; the zero value if there is none.
func (s *site) first(id tgr.DeliveryID) web.RunDetail {
	s.t.Helper()
	list, err := s.client.Runs(s.t.Context(), web.Filter{Delivery: id})
	if err != nil {
		s.t.Fatal(err)
	}
	if len(list.Runs) == 0 {
		return web.RunDetail{}
	}
	d, err := s.client.Run(s.t.Context(), list.Runs[len(list.Runs)-1].ID, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

// job finds a job by its key.
func job(d web.RunDetail, key string) tgr.Job {
	for _, j := range d.Jobs {
		if j.Key == key {
			return j
		}
	}
	return tgr.Job{}
}

// gate is a file that steps wait for: "until [ -e FILE ]; do sleep 0.05; done".
func gate(t *testing.T) (wait string, open func()) {
	t.Helper()
	flag := filepath.Join(t.TempDir(), "go")
	return "n=0; until [ -e " + flag + " ] || [ $n -ge 1200 ]; do sleep 0.05; n=$((n+1)); done", func() {
		if err := os.WriteFile(flag, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// What always() promises holds when a run is cancelled, and a second cancel asks no questions.
func TestCancelRun(t *testing.T) {
	s := openSite(t)
	wait, open := gate(t)
	defer open()
	repo := s.repo("acme/cancel", map[string]string{workflowDir + "/ci.yml": fmt.Sprintf(`on: push
jobs:
  long: {runs-on: linux, steps: [{run: "echo started; %s"}]}
  after: {needs: long, runs-on: linux, steps: [{run: "true"}]}
  clean: {needs: after, if: always(), runs-on: linux, steps: [{run: "true"}]}
  told: {needs: long, if: cancelled(), runs-on: linux, steps: [{run: "true"}]}
`, wait)})
	id := s.push(repo, nil)
	running := func() bool { return job(s.first(id), "long").Status == tgr.InProgress }
	s.await("the first job", running)
	run := s.first(id)
	if _, err := s.client.Cancel(t.Context(), run.ID, web.CancelRequest{Reason: "not needed", By: "ada"}); err != nil {
		t.Fatal(err)
	}
	got := outcomes(s.completed(id)[0])
	want := []string{"completed cancelled", "after completed cancelled", "clean completed success", "long completed cancelled", "told completed success"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("cancelled once (-want +got):\n%s", diff)
	}
	if r := s.first(id); r.Reason != "cancelled by ada: not needed" {
		t.Errorf("reason %q", r.Reason)
	}
	if _, err := s.client.Cancel(t.Context(), run.ID, web.CancelRequest{}); tgr.CodeOf(err) != tgr.Conflict {
		t.Errorf("cancelling a run that is completed: %v", err)
	}
	// The next attempt is not cancelled by what was said of the last one.
	if a, err := s.client.Rerun(t.Context(), run.ID, web.Rerun{What: web.RerunAll}); err != nil || a.Attempt != 2 {
		t.Fatalf("rerun: %+v, %v", a, err)
	}
	s.await("the first job, again", running)
	for range 2 {
		if _, err := s.client.Cancel(t.Context(), run.ID, web.CancelRequest{By: "bob"}); err != nil {
			t.Fatal(err)
		}
	}
	got = outcomes(s.completed(id)[0])
	want = []string{"completed cancelled", "after completed cancelled", "clean completed cancelled", "long completed cancelled", "told completed cancelled"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("cancelled twice (-want +got):\n%s", diff)
	}
}

// One job is cancelled, repeated with what needs it, and the failed ones are repeated.
func TestRerun(t *testing.T) {
	s := openSite(t)
	dir := t.TempDir()
	repo := s.repo("acme/again", map[string]string{workflowDir + "/ci.yml": fmt.Sprintf(`on: push
jobs:
  good: {runs-on: linux, outputs: {n: "${{ steps.s.outputs.n }}"}, steps: [{id: s, run: "echo x >> %[1]s/good; echo n=$(wc -l < %[1]s/good) >> $GITHUB_OUTPUT"}]}
  bad: {runs-on: linux, steps: [{run: "echo attempt $GITHUB_RUN_ATTEMPT; [ $GITHUB_RUN_ATTEMPT -gt 1 ]"}]}
  m: {runs-on: linux, strategy: {fail-fast: false, matrix: {n: [1, 2, 3]}}, steps: [{run: "[ ${{ matrix.n }} != 2 ] || [ $GITHUB_RUN_ATTEMPT -gt 1 ]"}]}
  last: {needs: [good, bad, m], runs-on: linux, steps: [{run: "echo good ran ${{ needs.good.outputs.n }} times"}]}
`, dir)})
	id := s.push(repo, nil)
	got := outcomes(s.completed(id)[0])
	want := []string{"completed failure", "bad completed failure", "good completed success", "last completed skipped",
		"m (1) completed success", "m (2) completed failure", "m (3) completed success"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("first attempt (-want +got):\n%s", diff)
	}
	run := s.first(id)
	if _, err := s.client.Rerun(t.Context(), run.ID, web.Rerun{What: web.RerunFailed}); err != nil {
		t.Fatal(err)
	}
	run = s.completed(id)[0]
	want = []string{"completed success", "bad completed success", "good completed success", "last completed success",
		"m (1) completed success", "m (2) completed success", "m (3) completed success"}
	if diff := cmp.Diff(want, outcomes(run)); diff != "" {
		t.Fatalf("second attempt (-want +got):\n%s", diff)
	}
	if log := s.get(fmt.Sprintf("/api/jobs/%d/log", job(run, "last").ID)); !strings.Contains(log, "good ran 1 times") {
		t.Errorf("a job that succeeded was not carried over:\n%s", log)
	}
	if log := s.get(fmt.Sprintf("/api/jobs/%d/log", job(run, "good").ID)); !strings.Contains(log, "steps.s") && !strings.HasPrefix(log, "200 ") {
		t.Errorf("the log of a job that was carried over:\n%s", log)
	}
	if _, err := s.client.Rerun(t.Context(), run.ID, web.Rerun{What: web.RerunFailed}); tgr.CodeOf(err) != tgr.Conflict {
		t.Errorf("repeating the failed jobs of a success: %v", err)
	}
	if _, err := s.client.Rerun(t.Context(), run.ID, web.Rerun{What: web.RerunJob, Job: job(run, "good").ID}); err != nil {
		t.Fatal(err)
	}
	run = s.completed(id)[0]
	if log := s.get(fmt.Sprintf("/api/jobs/%d/log", job(run, "last").ID)); run.Attempt != 3 || !strings.Contains(log, "good ran 2 times") {
		t.Errorf("attempt %d: what needs the repeated job did not see its new output:\n%s", run.Attempt, log)
	}
	if d, err := s.client.Run(t.Context(), run.ID, 1); err != nil || job(d, "bad").Conclusion != tgr.Failure {
		t.Errorf("the first attempt is not what it was: %v %v", outcomes(d), err)
	}
}

// workflow_dispatch by hand: inputs with defaults, a wrong one, a workflow that is not there.
func TestDispatch(t *testing.T) {
	s := openSite(t)
	repo := s.repo("acme/hand", map[string]string{workflowDir + "/ship.yml": `name: Ship
on:
  workflow_dispatch:
    inputs:
      where: {type: choice, options: [here, there], default: here}
      dry: {type: boolean, default: true}
      count: {type: number, required: true}
jobs:
  go: {runs-on: linux, steps: [{run: "echo to ${{ inputs.where }} dry=${{ inputs.dry }} next=${{ inputs.count }}", if: inputs.dry}]}
`, workflowDir + "/other.yml": "on: [workflow_dispatch, push]\njobs: {a: {runs-on: linux, steps: [{run: 'true'}]}}\n"})
	if _, err := s.client.Dispatch(t.Context(), web.Dispatch{Repo: "acme/hand", Workflow: "ship.yml", Ref: "main"}); tgr.CodeOf(err) != tgr.NotFound {
		t.Errorf("a repository that nobody has heard of: %v", err)
	}
	s.completed(s.push(repo, nil))
	run := func(d web.Dispatch) web.RunDetail {
		t.Helper()
		d.Repo = "acme/hand"
		if d.Ref == "" {
			d.Ref = "main"
		}
		a, err := s.client.Dispatch(t.Context(), d)
		if err != nil || len(a.Runs) != 1 {
			t.Fatalf("dispatch %+v: %+v, %v", d, a, err)
		}
		var out web.RunDetail
		s.await("the run", func() bool {
			if out, err = s.client.Run(t.Context(), a.Runs[0], 0); err != nil {
				t.Fatal(err)
			}
			return out.Status.Done()
		})
		return out
	}
	d := run(web.Dispatch{Workflow: "ship.yml", Ref: "main", Inputs: map[string]string{"where": "there", "count": "3"}})
	if d.Conclusion != tgr.Success || d.WorkflowName != "Ship" {
		t.Fatalf("%v: %s", outcomes(d), d.Reason)
	}
	if log := s.get(fmt.Sprintf("/api/jobs/%d/log", d.Jobs[0].ID)); !strings.Contains(log, "to there dry=true next=3") {
		t.Errorf("inputs:\n%s", log)
	}
	if err := repo.Tag("v1", repo.SHA("main"), ""); err != nil {
		t.Fatal(err)
	}
	if d := run(web.Dispatch{Workflow: "other.yml", Ref: "v1"}); d.Conclusion != tgr.Success || d.Event.Ref != "refs/tags/v1" {
		t.Errorf("of a tag: %s at %s: %s", d.Conclusion, d.Event.Ref, d.Reason)
	}
	for _, tt := range []struct {
		d    web.Dispatch
		want string
	}{
		{web.Dispatch{Workflow: "ship.yml"}, "count"},
		{web.Dispatch{Workflow: "ship.yml", Inputs: map[string]string{"count": "1", "where": "nowhere"}}, "nowhere"},
		{web.Dispatch{Workflow: "ship.yml", Inputs: map[string]string{"count": "1", "typo": "x"}}, "typo"},
		{web.Dispatch{Workflow: "none.yml"}, "none.yml"},
		{web.Dispatch{Workflow: "ship.yml", Ref: "no-such-branch"}, "no-such-branch"},
	} {
		d := run(tt.d)
		if d.Conclusion == tgr.Success || !strings.Contains(d.Reason, tt.want) {
			t.Errorf("%+v: %s: %q; want the reason to name %q", tt.d, d.Conclusion, d.Reason, tt.want)
		}
	}
}

// Of a concurrency group one goes on at a time, also when the server is killed in between.
func TestConcurrencyGroups(t *testing.T) {
	s := openSite(t)
	wait, open := gate(t)
	defer open()
	repo := s.repo("acme/groups", map[string]string{workflowDir + "/deploy.yml": fmt.Sprintf(`name: Deploy
on: push
concurrency: deploy-${{ github.ref_name }}
jobs:
  go: {runs-on: linux, steps: [{run: "%s"}]}
`, wait)})
	first := s.push(repo, nil)
	s.await("the first run", func() bool { return job(s.first(first), "go").Status == tgr.InProgress })
	second := s.push(repo, nil)
	s.await("the second run's reason", func() bool {
		return strings.Contains(s.first(second).Reason, `waits for the concurrency group "deploy-main", which run 1 holds`)
	})
	s.kill()
	s.start()
	third := s.push(repo, nil)
	if got := outcomes(s.completed(second)[0]); got[0] != "completed cancelled" {
		t.Errorf("the second run: %v; want it sent away by the third", got)
	}
	if got := s.first(third); got.Status.Done() || job(got, "go").Status != tgr.Pending {
		t.Errorf("the third run does not wait: %v", outcomes(got))
	}
	open()
	for _, id := range []tgr.DeliveryID{first, third} {
		if got := outcomes(s.completed(id)[0]); got[0] != "completed success" {
			t.Errorf("%v", got)
		}
	}
}

// Who follows a log sees all of it, also when the server is killed in the middle and the job is retried.
func TestFollowAcrossRestart(t *testing.T) {
	t.Parallel() // it mostly waits
	s := openSite(t, "PORT="+freePort(t))
	wait, open := gate(t)
	repo := s.repo("acme/follow", map[string]string{workflowDir + "/ci.yml": "on: push\njobs: {a: {runs-on: linux, steps: [{run: 'seq 1000; " + wait + "; echo the end'}]}}\n"})
	id := s.push(repo, nil)
	s.await("the job", func() bool { return job(s.first(id), "a").Status == tgr.InProgress })
	cmd := exec.Command("tgr", "runs", "logs", "-f", "--server", s.url, s.first(id).ID.String())
	file, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	printed := func() string {
		b, err := os.ReadFile(file.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	cmd.Stdout, cmd.Stderr = file, file
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.await("the first lines", func() bool { return strings.Contains(printed(), "\n1000\n") })
	s.kill()
	s.start()
	open()
	if got := outcomes(s.completed(id)[0]); got[0] != "completed success" {
		t.Error(got)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("tgr runs logs -f: %v", err)
	}
	out := printed()
	if _, after, ok := strings.Cut(out, "\n1000\n"); !ok || strings.Count(after, "\n1000\n") != 1 || !strings.Contains(after, "the end") {
		t.Errorf("want the log of the first try, and then all of the second:\n%.300s … %s", out, out[max(0, len(out)-600):])
	}
}

// freePort is a port that nobody listened on a moment ago.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// A job that its workflow gives more time than the operator says so in its log.
func TestServeMaxJobMinutes(t *testing.T) {
	s := openSite(t, "TGR_MAX_JOB_MINUTES=7")
	repo := s.repo("acme/bridge", map[string]string{".github/workflows/ci.yml": "on: push\njobs: {a: {runs-on: ubuntu-latest, timeout-minutes: 999999, steps: [{run: echo hi}]}}\n"})
	d := s.completed(s.send("push", repo.PushEvent("refs/heads/main", githubtest.Zero, repo.SHA("main"))))[0]
	const want = "timeout-minutes of this job is 50400, and this server allows no more than 7"
	if log := s.logOf(d); d.Conclusion != tgr.Success || !strings.Contains(log, want) {
		t.Errorf("run %s, whose log has no %q:\n%s", d.Conclusion, want, log)
	}
}

// Whether a machine has a job's labels is seen again when the job runs again, and its group is still its own.
func TestRerunOfARefusedJob(t *testing.T) {
	s := openSite(t)
	repo := s.repo("acme/farm", map[string]string{"README.md": "x"})
	delivery := s.push(repo, map[string]string{".github/workflows/ci.yml": `
on: push
jobs:
  test:
    strategy: {fail-fast: false, matrix: {on: [ubuntu-latest, barn]}}
    concurrency: g-${{ matrix.on }}
    runs-on: ${{ matrix.on }}
    steps: [{run: echo here}]
`})
	refused := []string{"completed failure", "test (barn) completed failure", "test (ubuntu-latest) completed success"}
	d := s.completed(delivery)[0]
	if diff := cmp.Diff(refused, outcomes(d)); diff != "" {
		t.Fatalf("at first (-want +got):\n%s", diff)
	}
	s.tgr(newRunsCmd(), "", "rerun", d.ID.String(), "--failed")
	d = s.completed(delivery)[0]
	if diff := cmp.Diff(refused, outcomes(d)); diff != "" || d.Attempt != 2 {
		t.Errorf("attempt %d (-want +got):\n%s", d.Attempt, diff)
	}
	for _, j := range d.Jobs {
		if j.Conclusion.Failed() && (j.Blame != tgr.BlameWorkflow || j.Tries != 0 || !strings.Contains(j.Reason, `the label "barn"`) || j.Group.Name != "g-barn") {
			t.Errorf("%s after %d tries, in the group %q, blame %q: %s", j.Name, j.Tries, j.Group.Name, j.Blame, j.Reason)
		}
	}
	s.stop()
	s.env = append(s.env, "TGR_LABELS=barn=")
	s.start()
	s.tgr(newRunsCmd(), "", "rerun", d.ID.String(), "--failed")
	d = s.completed(delivery)[0]
	if got := outcomes(d); got[0] != "completed success" || d.Attempt != 3 {
		t.Errorf("with a machine that has the label: attempt %d, %q", d.Attempt, got)
	}

	// What is shown of an earlier attempt is how that one ended.
	id := d.ID.String()
	if out := s.tgr(newRunsCmd(), "", "show", id, "--attempt", "2"); !strings.Contains(out, "attempt 2)") || !strings.Contains(out, "push by ada\n✗ failure\n") {
		t.Errorf("attempt 2 is shown as\n%s", out)
	}
	if _, code := s.tries(newRunsCmd(), "", "show", id, "--attempt", "2", "--exit-status"); code != 1 {
		t.Errorf("attempt 2: exit status %d", code)
	}
	if page := s.get("/runs/" + id + "?attempt=2"); !strings.Contains(page, "Attempt 2 of 3; the latest: ") {
		t.Error("the page of attempt 2 does not say whose the state is")
	}
}
