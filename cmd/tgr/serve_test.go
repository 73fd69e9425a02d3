package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/github"
	"github.com/terraphim/tgr/github/githubtest"
	"github.com/terraphim/tgr/web"
)

const testSecret = "a secret of these tests"

// site is a stand-in for GitHub and a server that is a process of its own.
type site struct {
	t      *testing.T
	hub    *githubtest.Server
	data   string
	env    []string
	cmd    *exec.Cmd
	binary string // the server
	umask  string // that it starts with; "": that of the tests
	url    string
	client *web.Client
	ended  chan struct{}

	mu       sync.Mutex
	log      bytes.Buffer
	patience time.Duration // how long to wait for anything; 0: 2 minutes
}

// openSite starts both, the server with more environment.
func openSite(t *testing.T, env ...string) *site {
	t.Helper()
	return openSiteOf(t, "tgr", env...)
}

// openPlainSite is openSite for tests of large numbers: the server is built without the race detector, with which SQLite takes
// ten times as long. What it would find, smaller tests do.
func openPlainSite(t *testing.T, env ...string) *site {
	t.Helper()
	binary, err := tgrBuilt()
	if err != nil {
		t.Fatal(err)
	}
	return openSiteOf(t, binary, env...)
}

func openSiteOf(t *testing.T, binary string, env ...string) *site {
	t.Helper()
	hub, err := githubtest.New(githubtest.Config{Dir: t.TempDir(), AppID: demoAppID})
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, hub: hub, data: t.TempDir(), binary: binary}
	key, err := (&demo{dir: s.data}).appKey()
	if err != nil {
		t.Fatal(err)
	}
	s.env = append([]string{"GITHUB_WEBHOOK_SECRET=" + testSecret, "GITHUB_API_URL=" + strings.TrimSuffix(hub.API(), "/"),
		"GITHUB_SERVER_URL=" + hub.URL, "GITHUB_APP_ID=" + fmt.Sprint(demoAppID), "GITHUB_APP_KEY_FILE=" + key, "PORT=0",
		"TGR_CONFIG=/dev/null", "TGR_ISOLATION=process", "TGR_DATA_DIR=" + filepath.Join(s.data, "data"), "TGR_AGENT=" + buildAgent(t)}, env...)
	t.Cleanup(func() {
		s.stop()
		if err := hub.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the server's log:\n%s", s.logged())
		}
	})
	s.start()
	return s
}

// start starts the server and waits until it listens.
func (s *site) start() {
	s.t.Helper()
	s.cmd = exec.Command(s.binary, "serve", "--log-format", "json", "--log-level", "debug")
	if s.umask != "" {
		s.cmd = exec.Command("sh", append([]string{"-c", "umask " + s.umask + `; exec "$@"`, "sh"}, s.cmd.Args...)...)
	}
	s.cmd.Env = append(os.Environ(), s.env...)
	pipe, err := s.cmd.StderrPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	listening := make(chan string, 1)
	s.ended = make(chan struct{})
	go func() {
		defer close(s.ended)
		defer close(listening)
		lines := bufio.NewScanner(pipe)
		lines.Buffer(nil, 16<<20)
		for lines.Scan() {
			s.mu.Lock()
			fmt.Fprintf(&s.log, "%s\n", lines.Bytes())
			s.mu.Unlock()
			var l struct{ Msg, URL string }
			if json.Unmarshal(lines.Bytes(), &l) == nil && l.Msg == "listening" {
				listening <- l.URL
			}
		}
	}()
	if s.url = <-listening; s.url == "" {
		s.t.Fatalf("the server did not start:\n%s", s.logged())
	}
	if s.client, err = web.NewClient(s.url, ""); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) logged() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

// stop ends the server as an operator would.
func (s *site) stop() {
	if s.cmd == nil {
		return
	}
	if err := s.cmd.Process.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
		s.t.Error(err)
	}
	<-s.ended
	if err := s.cmd.Wait(); err != nil {
		s.t.Errorf("the server ended with: %v", err)
	}
	s.cmd = nil
}

// kill ends the server at once.
func (s *site) kill() {
	s.t.Helper()
	if err := s.cmd.Process.Kill(); err != nil {
		s.t.Fatal(err)
	}
	<-s.ended
	s.cmd.Wait() // its error is the signal
	s.cmd = nil
}

// repo makes a repository of workflow files.
func (s *site) repo(name string, files map[string]string) *githubtest.Repo {
	s.t.Helper()
	r, err := s.hub.CreateRepo(name)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := r.Commit("main", "first", files); err != nil {
		s.t.Fatal(err)
	}
	return r
}

// send sends a webhook; it has to be accepted.
func (s *site) send(event string, payload []byte) tgr.DeliveryID {
	s.t.Helper()
	a, err := githubtest.Deliver(s.t.Context(), s.url+"/webhook", event, payload, testSecret)
	if err != nil {
		s.t.Fatal(err)
	}
	if a.Status != http.StatusAccepted {
		s.t.Fatalf("the %s webhook was answered with %d: %s", event, a.Status, a.Body)
	}
	return tgr.DeliveryID(a.Delivery)
}

// await polls until what returns true.
func (s *site) await(what string, ready func() bool) {
	s.t.Helper()
	deadline := time.After(max(s.patience, 2*time.Minute))
	for tick := time.Tick(20 * time.Millisecond); !ready(); {
		select {
		case <-tick:
		case <-deadline:
			s.t.Fatalf("still waiting for %s", what)
		}
	}
}

// completed waits until all runs of a delivery are completed, and returns them with their jobs.
func (s *site) completed(id tgr.DeliveryID) []web.RunDetail {
	s.t.Helper()
	return s.doneOf("the runs of delivery "+string(id), web.Filter{Delivery: id}, 1)
}

// doneOf waits until there are n runs or more, all completed, and returns them with their jobs, the latest first.
func (s *site) doneOf(what string, f web.Filter, n int) []web.RunDetail {
	s.t.Helper()
	var out []web.RunDetail
	s.await(what, func() bool {
		list, err := s.client.Runs(s.t.Context(), f)
		if err != nil {
			s.t.Fatal(err)
		}
		out = nil
		for _, r := range list.Runs {
			if !r.Status.Done() {
				return false
			}
			d, err := s.client.Run(s.t.Context(), r.ID, 0)
			if err != nil {
				s.t.Fatal(err)
			}
			out = append(out, d)
		}
		return len(out) >= n
	})
	return out
}

func (s *site) get(path string) string {
	s.t.Helper()
	resp, err := http.Get(s.url + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return fmt.Sprintf("%d %s", resp.StatusCode, body)
}

// post sends a body as it is.
func (s *site) post(header map[string]string, body []byte) (int, string) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, s.url+"/webhook", bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, string(answer)
}

func TestWebhookAnswers(t *testing.T) {
	s := openSite(t, "GITHUB_WEBHOOK_SECRET_PREVIOUS=the old one")
	body := []byte(`{"zen":"Design for failure.","hook_id":1}`)
	header := func(change map[string]string) map[string]string {
		h := map[string]string{"Content-Type": "application/json", "X-GitHub-Event": "ping", "X-GitHub-Delivery": tgr.NewToken(),
			"X-Hub-Signature-256": github.Sign([]byte(testSecret), body)}
		for k, v := range change {
			if v == "" {
				delete(h, k)
			} else {
				h[k] = v
			}
		}
		return h
	}
	tests := []struct {
		name   string
		change map[string]string
		body   []byte
		want   int
	}{
		{"ping", nil, body, 200},
		{"the previous secret", map[string]string{"X-Hub-Signature-256": github.Sign([]byte("the old one"), body)}, body, 200},
		{"no signature", map[string]string{"X-Hub-Signature-256": ""}, body, 401},
		{"malformed signature", map[string]string{"X-Hub-Signature-256": "sha256=zz"}, body, 401},
		{"only SHA-1", map[string]string{"X-Hub-Signature-256": "", "X-Hub-Signature": "sha1=" + strings.Repeat("0", 40)}, body, 401},
		{"wrong signature", map[string]string{"X-Hub-Signature-256": "sha256=" + strings.Repeat("0", 64)}, body, 403},
		{"another body", nil, append([]byte(" "), body...), 403},
		{"not JSON", map[string]string{"X-GitHub-Event": "push", "X-Hub-Signature-256": github.Sign([]byte(testSecret), []byte("{"))}, []byte("{"), 400},
		{"unknown event", map[string]string{"X-GitHub-Event": "sandwich"}, body, 202},
		{"compressed", map[string]string{"Content-Encoding": "gzip"}, body, 415},
		{"too large", nil, bytes.Repeat([]byte(" "), 26<<20), 413},
	}
	for _, tt := range tests {
		if got, answer := s.post(header(tt.change), tt.body); got != tt.want {
			t.Errorf("%s: %d %s, want %d", tt.name, got, answer, tt.want)
		}
	}
	if list, err := s.client.Runs(t.Context(), web.Filter{}); err != nil || len(list.Runs) != 0 {
		t.Errorf("%d runs, %v: none of these should have started one", len(list.Runs), err)
	}
	if got := s.get("/webhook"); !strings.HasPrefix(got, "405 ") {
		t.Errorf("GET /webhook: %s", got)
	}
}

// One event starts its workflows once: not again for the same delivery, nor for its body under another id.
func TestDuplicates(t *testing.T) {
	s := openSite(t)
	repo := s.repo("acme/dup", map[string]string{workflowDir + "/ci.yml": trivialWorkflow})
	payload := repo.PushEvent("refs/heads/main", githubtest.Zero, repo.SHA("main"))
	first, err := githubtest.Deliver(t.Context(), s.url+"/webhook", "push", payload, testSecret)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{first.Delivery, "11111111-2222-3333-4444-555555555555"} {
		again, err := githubtest.Redeliver(t.Context(), s.url+"/webhook", "push", payload, testSecret, id)
		if err != nil {
			t.Fatal(err)
		}
		if again.Status != 200 || !strings.Contains(string(again.Body), `"run_ids":[1]`) {
			t.Errorf("delivery %s: %d %s, want 200 with the first one's run", id, again.Status, again.Body)
		}
	}
	s.completed(tgr.DeliveryID(first.Delivery))
	list, err := s.client.Runs(t.Context(), web.Filter{})
	if err != nil || len(list.Runs) != 1 {
		t.Errorf("%d runs, %v; want 1", len(list.Runs), err)
	}
}

// Jobs are shown in the order of the workflow file, whatever order they were made in.
func TestOrderOfJobs(t *testing.T) {
	s := openSite(t)
	repo := s.repo("acme/order", map[string]string{workflowDir + "/ci.yml": `on: push
jobs:
  first: {runs-on: linux, steps: [{run: "true"}]}
  second: {needs: first, strategy: {matrix: {n: [2, 1]}}, runs-on: linux, steps: [{run: "true"}]}
  third: {needs: second, if: failure(), runs-on: linux, steps: [{run: "true"}]}
`})
	runs := s.completed(s.send("push", repo.PushEvent("refs/heads/main", githubtest.Zero, repo.SHA("main"))))
	var got []string
	for _, j := range runs[0].Jobs {
		got = append(got, j.Name+" "+string(j.Conclusion))
	}
	if diff := cmp.Diff([]string{"first success", "second (2) success", "second (1) success", "third skipped"}, got); diff != "" {
		t.Errorf("jobs (-want +got):\n%s", diff)
	}
}

// A failed step is a failure everywhere, and other workflows of the event are not harmed.
func TestFailureIsFailureEverywhere(t *testing.T) {
	s := openSite(t)
	repo := s.repo("acme/fails", map[string]string{
		workflowDir + "/bad.yml":    "name: Bad\non: [push, pull_request]\njobs:\n  test:\n    runs-on: linux\n    steps:\n      - run: |\n          echo the cause is here\n          exit 3\n",
		workflowDir + "/good.yml":   "name: Good\non: [push, pull_request]\njobs:\n  test: {runs-on: linux, steps: [{run: \"true\"}]}\n",
		workflowDir + "/broken.yml": "name: Broken\non: [push, pull_request]\njobs:\n  test: {runs-on: linux, stepz: [{run: \"true\"}]}\n",
	})
	if err := repo.Branch("change", repo.SHA("main")); err != nil {
		t.Fatal(err)
	}
	if _, err := repo.Commit("change", "change", map[string]string{"file": "x"}); err != nil {
		t.Fatal(err)
	}
	pull, err := repo.OpenPull(nil, "change", "main")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	var failed web.RunDetail
	for _, r := range s.completed(s.send("pull_request", pull.Event("opened"))) {
		got[r.WorkflowFile] = string(r.Conclusion)
		if strings.HasSuffix(r.WorkflowFile, "bad.yml") {
			failed = r
		}
	}
	want := map[string]string{workflowDir + "/bad.yml": "failure", workflowDir + "/good.yml": "success", workflowDir + "/broken.yml": "startup_failure"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("runs (-want +got):\n%s", diff)
	}
	if j := failed.Jobs[0]; j.Conclusion != tgr.Failure || j.Blame != tgr.BlameUser || j.Tries != 1 {
		t.Errorf("the job: %s, blame %q, %d tries", j.Conclusion, j.Blame, j.Tries)
	}
	checks, states := map[string]string{}, map[string]string{}
	s.await("the reports", func() bool {
		clear(checks)
		clear(states)
		for _, c := range s.hub.CheckRuns(repo.FullName) {
			checks[c.Name] = c.Conclusion
			if c.HeadSHA != pull.HeadSHA {
				t.Fatalf("the check run is on %s, want the head %s", c.HeadSHA, pull.HeadSHA)
			}
		}
		for _, st := range latest(s.hub.Statuses(repo.FullName)) {
			states[st.Context] = st.State
		}
		done := len(checks) == 3 && len(states) == 3 && len(s.hub.Comments(repo.FullName)) == 1
		for _, c := range checks {
			done = done && c != ""
		}
		for _, st := range states {
			done = done && st != "pending"
		}
		return done && strings.Contains(s.hub.Comments(repo.FullName)[0].Body, "the cause is here")
	})
	if checks["Bad / test (pull_request)"] != "failure" || states["Bad / test (pull_request)"] != "failure" {
		t.Errorf("GitHub was told checks %v and statuses %v", checks, states)
	}
	if checks["Good / test (pull_request)"] != "success" {
		t.Errorf("Good's check is %q", checks["Good / test (pull_request)"])
	}
	broken := ""
	for _, c := range s.hub.CheckRuns(repo.FullName) {
		if strings.Contains(c.Name, "roken") {
			broken = c.Output.Title + c.Output.Summary + c.Output.Text
		}
	}
	if !strings.Contains(broken, "broken.yml:4:") || !strings.Contains(broken, "stepz") {
		t.Errorf("the broken workflow's check does not say where it is wrong: %q", broken)
	}
	if out, err := exec.Command("tgr", "runs", "show", "--server", s.url, "--exit-status", failed.ID.String()).CombinedOutput(); exitCode(err) != 1 {
		t.Errorf("tgr runs show --exit-status: %v\n%s", err, out)
	}
	metrics := s.get("/metrics")
	for _, name := range []string{`tgr_jobs_total{result="failure"} 1`, `tgr_jobs_total{result="success"} 1`, `tgr_errors_total{blame="user"} 1`,
		`tgr_webhooks_total{event="pull_request",result="accepted"} 1`, "tgr_queue_depth ", "tgr_vm_boot_seconds_count", "tgr_vm_allocation_seconds_count",
		"tgr_plan_seconds_count 1", "tgr_step_seconds_count"} {
		if !strings.Contains(metrics, name) {
			t.Errorf("/metrics has no %s", name)
		}
	}
	if got := s.get("/readyz"); !strings.HasPrefix(got, "200 ") || !strings.Contains(got, "database") || !strings.Contains(got, "machines") {
		t.Errorf("/readyz: %s", got)
	}
	if got := s.get("/healthz"); !strings.HasPrefix(got, "200 ") {
		t.Errorf("/healthz: %s", got)
	}
}

func exitCode(err error) int {
	var e *exec.ExitError
	if errors.As(err, &e) {
		return e.ExitCode()
	}
	return 0
}

// A token is in no log, no job, and no argument of a process.
func TestTokenStaysInside(t *testing.T) {
	const canary = "ghp_canaryCANARY0123456789"
	hub, err := githubtest.New(githubtest.Config{Dir: t.TempDir(), Token: canary})
	if err != nil {
		t.Fatal(err)
	}
	defer hub.Close()
	repo, err := hub.CreateRepo("acme/private")
	if err != nil {
		t.Fatal(err)
	}
	repo.SetPrivate(true)
	_, err = repo.Commit("main", "first", map[string]string{workflowDir + "/ci.yml": `on: push
jobs:
  look:
    runs-on: linux
    steps:
      - uses: actions/checkout@v4
      - run: |
          env
          git config --list --show-origin || true
          cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' ' '
          grep -rs ` + canary[:10] + ` . || echo nothing found
`})
	if err != nil {
		t.Fatal(err)
	}
	s := openSite(t, "GITHUB_TOKEN="+canary, "GITHUB_APP_ID=", "GITHUB_API_URL="+strings.TrimSuffix(hub.API(), "/"), "GITHUB_SERVER_URL="+hub.URL)
	runs := s.completed(s.send("push", repo.PushEvent("refs/heads/main", githubtest.Zero, repo.SHA("main"))))
	if runs[0].Conclusion != tgr.Success {
		t.Fatalf("the run: %s: %s", runs[0].Conclusion, runs[0].Jobs[0].Reason)
	}
	log := s.get(fmt.Sprintf("/api/jobs/%d/log", runs[0].Jobs[0].ID))
	if !strings.Contains(log, "nothing found") {
		t.Errorf("the job found a part of the token:\n%s", log)
	}
	for where, text := range map[string]string{"the job's log": log, "the server's log": s.logged()} {
		if strings.Contains(text, canary) {
			t.Errorf("%s holds the token", where)
		}
	}
	err = filepath.WalkDir(s.data, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, []byte(canary)) {
			t.Errorf("%s holds the token", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// A sender that is slow is cut off, and one that is too fast is told to wait.
func TestSlowAndFastSenders(t *testing.T) {
	t.Parallel() // it mostly waits
	s := openSite(t, "TGR_WEBHOOK_RATE=5")
	limited := false
	for range 100 {
		if code, _ := s.post(map[string]string{"X-GitHub-Event": "ping"}, []byte("{}")); code == http.StatusTooManyRequests {
			limited = true
			break
		}
	}
	if !limited {
		t.Error("100 webhooks at once, and none was answered with 429")
	}
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	began := time.Now()
	fmt.Fprint(conn, "POST /webhook HTTP/1.1\r\nHost: x\r\n") // and never the rest
	if err := conn.SetDeadline(began.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a sender that does not end its header was still listened to after %s", time.Since(began))
	}
}

// leftovers are what machines have left on the host.
func leftovers(t *testing.T, data string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(data, "data", "machines"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		cmdline, err := os.ReadFile(p)
		if err == nil && bytes.Contains(cmdline, []byte(data)) && !bytes.Contains(cmdline, []byte("serve")) {
			out = append(out, filepath.Base(filepath.Dir(p))+" "+string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))
		}
	}
	return out
}

// Killing the server in mid-job and starting it again ends with every accepted run in a final state, and no machine left.
func TestKill(t *testing.T) {
	for _, tt := range []struct {
		isolation string
		kills     int
	}{{"process", 6}, {"qemu", 1}} {
		t.Run(tt.isolation, func(t *testing.T) {
			if tt.isolation == "qemu" && testing.Short() {
				t.Skip("-short: no virtual machines")
			}
			s := openSite(t, "TGR_ISOLATION="+tt.isolation, "MAX_CONCURRENT_WORKFLOWS=2")
			flag := filepath.Join(t.TempDir(), "go") // processes see it, machines do not
			repo := s.repo("acme/kill", map[string]string{workflowDir + "/ci.yml": fmt.Sprintf(`on: push
jobs:
  long:
    runs-on: linux
    steps:
      - run: |
          echo started
          n=0
          until [ -e %s ] || [ $n -ge 50 ]; do sleep 0.2; n=$((n+1)); done
  after:
    needs: long
    runs-on: linux
    steps: [{run: echo after}]
`, flag)})
			var deliveries []tgr.DeliveryID
			before := githubtest.Zero
			for i := range tt.kills {
				sha, err := repo.Commit("main", fmt.Sprint("commit ", i), map[string]string{"n": strconv.Itoa(i)})
				if err != nil {
					t.Fatal(err)
				}
				deliveries = append(deliveries, s.send("push", repo.PushEvent("refs/heads/main", before, sha)))
				before = sha
				seen := strings.Count(s.logged(), `"msg":"machine"`)
				s.await("a job in a machine", func() bool { return strings.Count(s.logged(), `"msg":"machine"`) > seen || i > 1 })
				s.kill()
				s.start()
			}
			if err := os.WriteFile(flag, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			retried := false
			for _, id := range deliveries {
				for _, r := range s.completed(id) {
					for _, j := range r.Jobs {
						retried = retried || j.Tries > 1
						// Three machines that died under it are all that a job gets: then it ends as our failure.
						if j.Conclusion != tgr.Success && (j.Blame != tgr.BlameOurs && j.Conclusion != tgr.Skipped) {
							t.Errorf("run %d, job %s: %s, blame %q: %s", r.ID, j.Name, j.Conclusion, j.Blame, j.Reason)
						}
					}
				}
			}
			if tt.isolation == "process" && !retried { // virtual machines go on
				t.Error("no job was retried: was any interrupted?")
			}
			if tt.isolation == "process" && !strings.Contains(s.logged(), "the server was interrupted while this job ran") {
				t.Error("the log does not say that jobs were interrupted")
			}
			s.stop() // machines that wait for jobs end with the server
			left := leftovers(t, s.data)
			for tick, n := time.Tick(50*time.Millisecond), 0; len(left) > 0 && n < 400; n++ {
				<-tick
				left = leftovers(t, s.data)
			}
			if len(left) > 0 {
				t.Errorf("left on the host: %v", left)
			}
		})
	}
}

// Every webhook of the official examples is accepted as the event that it is.
func TestOfficialPayloads(t *testing.T) {
	data, err := os.ReadFile("../../../shared/suites/webhooks.json")
	if err != nil {
		t.Skipf("the suite of webhook payloads is not here: %v", err)
	}
	payloads := webhookExamples(t, data)
	s := openPlainSite(t, "TGR_WEBHOOK_RATE=1000")
	for _, p := range payloads {
		a, err := githubtest.Deliver(t.Context(), s.url+"/webhook", p.event, p.body, testSecret)
		if err != nil {
			t.Fatal(err)
		}
		if a.Status/100 != 2 {
			t.Errorf("%s: %d %s", p.event, a.Status, a.Body)
			continue
		}
		var answer struct {
			Runs []tgr.RunID `json:"run_ids"`
		}
		if err := json.Unmarshal(a.Body, &answer); err != nil {
			t.Errorf("%s: %v: %s", p.event, err, a.Body)
		}
		for _, id := range answer.Runs {
			run, err := s.client.Run(t.Context(), id, 0)
			if err != nil || run.Event.Name != p.event {
				t.Errorf("%s: run %d is of event %q, %v", p.event, id, run.Event.Name, err)
			}
		}
	}
	t.Logf("%d payloads", len(payloads))
}

type webhookExample struct {
	event string
	body  []byte
}

// webhookExamples reads the suite's file: a list of events, each with examples.
func webhookExamples(t *testing.T, data []byte) []webhookExample {
	t.Helper()
	var events []struct {
		Name     string            `json:"name"`
		Examples []json.RawMessage `json:"examples"`
	}
	if err := json.Unmarshal(data, &events); err != nil {
		t.Fatal(err)
	}
	var out []webhookExample
	for _, e := range events {
		for _, x := range e.Examples {
			out = append(out, webhookExample{e.Name, x})
		}
	}
	if len(out) < 200 {
		t.Fatalf("%d examples; the suite has 209", len(out))
	}
	return out
}

// What the demo shows is what the README promises.
func TestDemo(t *testing.T) {
	isolation := "auto"
	if testing.Short() {
		isolation = "process"
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "tgr", "demo", "--isolation", isolation)
	agent := buildAgent(t)
	cmd.Env = append(os.Environ(), "TGR_AGENT="+agent, "PATH="+filepath.Dir(agent)+":"+os.Getenv("PATH"), "TGR_CONFIG=/dev/null")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("tgr demo: %v\n%s", err, out)
	}
	if isolation == "process" {
		return
	}
	kernels := regexp.MustCompile(`success +qemu \(\w+\) +(\S+-cloud-amd64) `).FindAllSubmatch(out, -1)
	if len(kernels) != 3 {
		t.Fatalf("the summary has %d jobs in machines with Debian's kernel, want 3:\n%s", len(kernels), out)
	}
	for _, k := range kernels {
		if string(k[1]) == hostKernel() {
			t.Errorf("the guest's kernel is the host's: %s", k[1])
		}
	}
	for _, want := range []string{"status ", "check ", "comment  on pull request #1", "webhook to first line", "The token is ***."} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the demo does not show %q", want)
		}
	}
}
