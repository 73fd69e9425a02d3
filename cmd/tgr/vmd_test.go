package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/github/githubtest"
	"github.com/terraphim/tgr/vmapi"
	"github.com/terraphim/tgr/vmapi/vmapitest"
)

// daemon is a tgr vmd that is a process of its own.
type daemon struct {
	t     *testing.T
	url   string
	data  string
	token string
	env   []string // of its clients
}

// startDaemon starts one, with more environment.
func startDaemon(t *testing.T, env ...string) *daemon {
	t.Helper()
	d := &daemon{t: t, data: t.TempDir()}
	base := append(os.Environ(), "TGR_CONFIG=/dev/null", "TGR_DATA_DIR="+d.data, "TGR_AGENT="+buildAgent(t), "NO_COLOR=1", "FIRECRACKER_API_URL=", "FIRECRACKER_AUTH_TOKEN=")
	cmd := exec.Command("tgr", "vmd", "--vmd-listen", "127.0.0.1:0", "--log-format", "json")
	cmd.Env = append(append(base, "TGR_ISOLATION=process"), env...)
	pipe, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	listening, ended := make(chan string, 1), make(chan struct{})
	var log bytes.Buffer
	go func() {
		defer close(ended)
		defer close(listening)
		for lines := bufio.NewScanner(pipe); lines.Scan(); {
			log.Write(append(lines.Bytes(), '\n'))
			var l struct{ Msg, URL string }
			if json.Unmarshal(lines.Bytes(), &l) == nil && l.Msg == "listening" {
				listening <- l.URL
			}
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		<-ended
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Logf("the daemon ended with %v; its log:\n%s", err, &log)
		}
		if left, _ := filepath.Glob(filepath.Join(d.data, "vmd", "*")); len(left) > 0 {
			t.Errorf("machines are left: %v", left)
		}
	})
	if d.url = <-listening; d.url == "" {
		<-ended
		t.Fatalf("the daemon did not start:\n%s", &log)
	}
	d.env = append(base, "FIRECRACKER_API_URL="+d.url)
	d.token = strings.TrimSpace(d.tgr("vmd", "token", "--user", "tester", "--for", "1h").stdout)
	return d
}

// result is how a command of ours ended.
type result struct {
	code           int
	stdout, stderr string
}

// tgr runs a command against the daemon.
func (d *daemon) tgr(args ...string) result { return d.tgrIn("", "", args...) }

func (d *daemon) tgrIn(dir, stdin string, args ...string) result {
	d.t.Helper()
	cmd := exec.CommandContext(d.t.Context(), "tgr", args...)
	cmd.Env, cmd.Dir, cmd.Stdin = d.env, dir, strings.NewReader(stdin)
	var out, errout bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errout
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		d.t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errout.String()}
}

// The verbs of tgr vm, as an operator on the daemon's own host would use them.
func TestVMVerbs(t *testing.T) {
	d := startDaemon(t)
	made := d.tgr("vm", "create", "--name", "mine", "--lease", "10m")
	id := strings.TrimSpace(made.stdout)
	if made.code != 0 || !strings.HasPrefix(id, "vm-") {
		t.Fatalf("create: %+v", made)
	}
	for _, tt := range []struct {
		name   string
		stdin  string
		args   []string
		code   int
		stdout string // a regular expression, of all of it
		stderr string // is in it
	}{
		{"exec", "", []string{"exec", id, "--", "sh", "-c", "echo out; echo err >&2; exit 7"}, 7, "out\n", "err"},
		{"exec with input", "typed", []string{"exec", "-i", "--dir", "/usr", "--env", "X=y z", id, "--", "sh", "-c", `cat; echo "|$PWD|$X"`}, 0, `typed\|/usr\|y z\n`, ""},
		{"exec of nothing that is there", "", []string{"exec", id, "--", "nonesuch-program"}, 127, "", "not found"},
		{"shell without a terminal", "cd /usr; pwd; exit 5\n", []string{"shell", id}, 5, "/usr\n", ""},
		{"list", "", []string{"list"}, 0, `(?s)ID .*` + id + ` +leased +\d+s +process +mine.*1 of \d+ machines are in use\n`, ""},
		{"list, JSON", "", []string{"list", "--json"}, 0, `(?s)\{.*"id": "` + id + `".*`, ""},
		{"history of failures", "", []string{"history", "--failures", id}, 0, `(?s).* 5 +\d+ ms +bash\n.* 127 .*nonesuch-program\n.* 7 .*echo err.*`, ""},
		{"snapshot", "", []string{"snapshot", id}, 3, "", "process, which has no snapshots"},
		{"rollback", "", []string{"rollback", id, "x"}, 3, "", "process, which has no snapshots"},
		{"no such machine", "", []string{"exec", "vm-0", "--", "true"}, 2, "", "no machine"},
		{"no such label", "", []string{"create", "--label", "windows-latest"}, 2, "", "windows-latest"},
		{"rm", "", []string{"rm", id, "vm-0"}, 0, "", ""},
		{"after rm", "", []string{"exec", id, "--", "true"}, 2, "", "gone"},
	} {
		got := d.tgrIn("", tt.stdin, append([]string{"vm"}, tt.args...)...)
		if got.code != tt.code || !regexp.MustCompile("^"+tt.stdout+"$").MatchString(got.stdout) || !strings.Contains(got.stderr, tt.stderr) {
			t.Errorf("%s: status %d, %q, %q; want %d, %q, %q", tt.name, got.code, got.stdout, got.stderr, tt.code, tt.stdout, tt.stderr)
		}
	}
	d.env = append(d.env, "FIRECRACKER_AUTH_TOKEN=wrong")
	if got := d.tgr("vm", "list"); got.code != 2 || !strings.Contains(got.stderr, "tgr vmd token") {
		t.Errorf("with a wrong token: %+v", got)
	}
	if got := d.tgr("vmd", "token", "--for", "0s"); got.code != 2 {
		t.Errorf("a token for no time: %+v", got)
	}
}

// A terminal in the machine, through a terminal here.
func TestVMShell(t *testing.T) {
	if _, err := exec.LookPath("script"); err != nil {
		t.Skip("NOT TESTED: script(1), which makes a terminal, is not there")
	}
	d := startDaemon(t)
	id := strings.TrimSpace(d.tgr("vm", "create").stdout)
	cmd := exec.CommandContext(t.Context(), "script", "-qec", "stty rows 33 cols 77; tgr vm shell "+id, "/dev/null")
	cmd.Env, cmd.Stdin = d.env, strings.NewReader("test -t 0 && stty size; exit 6\n")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 6 || !strings.Contains(string(out), "33 77") {
		t.Errorf("%v, want status 6 and the size 33 77: %q", err, out)
	}
	d.tgr("vm", "rm", id)
}

const remoteWorkflow = `on: push
jobs:
  good:
    runs-on: ubuntu-latest
    outputs: {said: "${{ steps.say.outputs.said }}"}
    steps:
      - uses: actions/checkout@v4
      - id: say
        run: |
          test -f .github/workflows/ci.yml
          echo "said=hello" >> "$GITHUB_OUTPUT"
  after:
    needs: good
    runs-on: ubuntu-latest
    steps:
      - run: test "${{ needs.good.outputs.said }}" = hello
  bad:
    runs-on: ubuntu-latest
    steps:
      - run: echo before; exit 42
      - run: echo never
`

func repoWith(t *testing.T, workflow string) string {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, ".github", "workflows", "ci.yml")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(workflow), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"init", "-q", "-b", "main"}, {"add", "-A"}, {"-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "x"}} {
		cmd := exec.Command("git", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	return dir
}

// ranRemotely checks what tgr run said of the workflow.
func ranRemotely(t *testing.T, got result, isolation string) {
	t.Helper()
	for _, want := range []string{"/ good: success", "/ after: success", "/ bad: failure", "exit code 42", "[" + isolation} {
		if !strings.Contains(got.stdout, want) {
			t.Errorf("no %q in what tgr run says", want)
		}
	}
	if got.code != 1 || strings.Contains(got.stdout, "never\n") || t.Failed() {
		t.Errorf("status %d, want 1:\n%s%s", got.code, got.stdout, got.stderr)
	}
}

func TestRunOverAPI(t *testing.T) {
	d := startDaemon(t)
	repo := repoWith(t, remoteWorkflow)
	d.env = append(d.env, "FIRECRACKER_AUTH_TOKEN="+d.token)
	ranRemotely(t, d.tgrIn(repo, "", "run"), "process at 127.0.0.1:")
	if l := d.tgr("vm", "list"); !strings.Contains(l.stdout, "0 of ") {
		t.Errorf("machines are left: %s", l.stdout)
	}
	if got := d.tgrIn(repo, "", "run", "--isolation", "process", "-j", "good"); got.code != 0 || !strings.Contains(got.stdout, "[process]") {
		t.Errorf("an isolation that was asked for by name: %+v", got)
	}
	keepOnFailure(t, d, repo)
	d.env = append(d.env, "FIRECRACKER_AUTH_TOKEN=wrong")
	if got := d.tgrIn(repo, "", "run"); got.code != 2 || !strings.Contains(got.stderr, "FIRECRACKER_AUTH_TOKEN") {
		t.Errorf("with a wrong token: %+v", got)
	}
}

// keepOnFailure looks into the machine of a job that failed, as its author would.
func keepOnFailure(t *testing.T, d *daemon, repo string) {
	t.Helper()
	if got := d.tgrIn(repo, "", "run", "--keep-on-failure", "--isolation", "process"); got.code != 2 || !strings.Contains(got.stderr, "tgr vmd") {
		t.Errorf("without the API: %+v", got)
	}
	if got := d.tgrIn(repo, "", "run", "--snapshot-steps"); got.code != 2 || !strings.Contains(got.stderr, "--keep-on-failure") {
		t.Errorf("snapshots that nobody could use: %+v", got)
	}
	got := d.tgrIn(repo, "", "run", "--keep-on-failure", "--snapshot-steps")
	ids := regexp.MustCompile(`tgr vm shell (vm-\w+)`).FindAllStringSubmatch(got.stdout, -1)
	if got.code != 1 || len(ids) != 1 {
		t.Fatalf("status %d, kept %v, want the one of the job that failed:\n%s", got.code, ids, got.stdout)
	}
	id := ids[0][1]
	if l := d.tgr("vm", "list", "--json"); !strings.Contains(l.stdout, `"state": "failed"`) || !strings.Contains(l.stdout, `"current_vms": 1`) {
		t.Errorf("the session of %s is not failed, or more than its machine is there: %s", id, l.stdout)
	}
	if look := d.tgrIn("", "ls work/*/* >/dev/null && echo it is all there\n", "vm", "shell", id); look.stdout != "it is all there\n" {
		t.Errorf("in the machine that failed: %+v", look)
	}
	// The process machines of this test have no snapshots, which the log says; the machines of QEMU's tests do.
	if !strings.Contains(got.stdout, "No snapshot before step 2") && !strings.Contains(got.stdout, "tgr vm rollback "+id) {
		t.Errorf("nothing is said of snapshots:\n%s", got.stdout)
	}
	if rm := d.tgr("vm", "rm", id); rm.code != 0 {
		t.Errorf("rm: %+v", rm)
	}
}

// The same jobs, on a server that knows no more than fcctl-web, with its habits.
func TestRunOverOriginal(t *testing.T) {
	s, err := vmapitest.New(vmapitest.Habits{Token: "a-token", BootPolls: 1, NotReady: 2, LoseEvery: 9, Capacity: 2, Forgets: true})
	if err != nil {
		t.Skipf("NOT TESTED: the stand-in for fcctl-web: %v", err)
	}
	d := &daemon{t: t, env: append(os.Environ(), "TGR_CONFIG=/dev/null", "NO_COLOR=1", "TGR_DATA_DIR="+t.TempDir(),
		"FIRECRACKER_API_URL="+s.URL, "FIRECRACKER_AUTH_TOKEN=a-token")}
	got := d.tgrIn(repoWith(t, remoteWorkflow), "", "run", "--parallel", "3")
	ranRemotely(t, got, "fcctl-web at 127.0.0.1:")
	if !strings.Contains(got.stdout, "There are no caches, artifacts and identity tokens on this machine: the VM API at 127.0.0.1:") {
		t.Errorf("the log of a job with actions does not say that there are no services:\n%s", got.stdout)
	}
	if now, ever := s.Machines(); now != 0 || ever != 3 {
		t.Errorf("%d machines are left of %d, want 0 of 3", now, ever)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// A webhook's jobs run on the daemon's machines, and none is left.
func TestServeOverAPI(t *testing.T) {
	d := startDaemon(t)
	s := openSite(t, "FIRECRACKER_API_URL="+d.url, "FIRECRACKER_AUTH_TOKEN="+d.token)
	repo := s.repo("acme/remote", map[string]string{workflowDir + "/ci.yml": remoteWorkflow})
	runs := s.completed(s.send("push", repo.PushEvent("refs/heads/main", githubtest.Zero, repo.SHA("main"))))
	got := map[string]tgr.Conclusion{}
	for _, j := range runs[0].Jobs {
		if j.Kind != tgr.WorkJob {
			continue
		}
		got[j.Key] = j.Conclusion
		if !strings.HasPrefix(j.Machine, "vm-") || !strings.HasPrefix(j.Isolation, "process at 127.0.0.1:") {
			t.Errorf("job %s ran on %q (%s)", j.Key, j.Machine, j.Isolation)
		}
	}
	if got["good"] != tgr.Success || got["after"] != tgr.Success || got["bad"] != tgr.Failure || len(got) != 3 {
		t.Errorf("conclusions %v", got)
	}
	if ready := s.get("/readyz"); !strings.HasPrefix(ready, "200 ") {
		t.Errorf("readyz: %s", ready)
	}
	s.await("the end of all machines", func() bool { return strings.Contains(d.tgr("vm", "list").stdout, "0 of ") })
}

// Real machines: a job, and a machine that is put back to what it was, its files, its memory and its processes.
func TestVMDWithQEMU(t *testing.T) {
	if testing.Short() {
		t.Skip("real machines take seconds")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	d := startDaemon(t, "TGR_ISOLATION=qemu", "TGR_VM_MEMORY=256", "TGR_VM_POOL=0", "HOME="+home)
	began := time.Now()
	id := strings.TrimSpace(d.tgr("vm", "create", "--name", "real").stdout)
	if id == "" {
		t.Fatal("no machine")
	}
	t.Logf("ready after %v", time.Since(began))
	in := func(script string) result { return d.tgr("vm", "exec", id, "--", "bash", "-c", script) }
	if got := in("id -un; hostname; echo before > ~/file; (while :; do read -t 1000 x < /tmp/pipe && echo $x$$ >> ~/said; done) & mkfifo /tmp/pipe; echo $! > ~/pid"); got.code != 0 || got.stdout != "runner\n"+id+"\n" {
		t.Fatalf("exec: %+v", got)
	}
	rollBack(t, d, id, in)
	standStill(t, d, id, in)
	d.tgr("vm", "rm", id)
	d.env = append(d.env, "FIRECRACKER_AUTH_TOKEN="+d.token)
	run := d.tgrIn(repoWith(t, remoteWorkflow), "", "run")
	ranRemotely(t, run, "qemu (")
	stepByStep(t, d)
}

// failsLate is a job whose steps leave something on the disk, in memory and running, and of which the last one fails.
const failsLate = `on: push
jobs:
  late:
    runs-on: ubuntu-latest
    steps:
      - run: echo 1 >> ~/steps; echo 1 >> /dev/shm/steps
      - run: echo 2 >> ~/steps; echo 2 >> /dev/shm/steps
      - run: echo 3 >> ~/steps; echo 3 >> /dev/shm/steps; nohup sleep 1000 >/dev/null 2>&1 & echo $! > ~/sleeper
      - run: echo 4 >> ~/steps; echo 4 >> /dev/shm/steps; kill $(cat ~/sleeper)
      - run: echo 5 >> ~/steps; echo 5 >> /dev/shm/steps; exit 42
`

// stepByStep has a job fail whose machine is kept with snapshots, and goes back in it as its author would.
func stepByStep(t *testing.T, d *daemon) {
	t.Helper()
	got := d.tgrIn(repoWith(t, failsLate), "", "run", "--keep-on-failure", "--snapshot-steps")
	took := regexp.MustCompile(`Snapshot (\S+) before step (\d+): tgr vm rollback (vm-\w+) `).FindAllStringSubmatch(got.stdout, -1)
	if got.code != 1 || len(took) < 5 || !strings.Contains(got.stdout, "exit code 42") {
		t.Fatalf("status %d, %d snapshots, want one before each of five steps:\n%s%s", got.code, len(took), got.stdout, got.stderr)
	}
	id := took[0][3]
	defer d.tgr("vm", "rm", id)
	c, err := vmapi.NewClient(vmapi.ClientConfig{URL: d.url, Token: d.token})
	if err != nil {
		t.Fatal(err)
	}
	all, err := c.Snapshots(t.Context(), id)
	list := all.Snapshots
	if err != nil || len(list) != 3 {
		t.Fatalf("%d snapshots are kept, want the last 3; %v", len(list), err)
	}
	const tell = "cat ~/steps /dev/shm/steps | tr '\\n' ' '; kill -0 $(cat ~/sleeper) 2>/dev/null && echo sleeps || echo gone\n"
	for _, look := range []struct {
		back int // to this of the snapshots that are kept; -1: the machine as it failed
		want string
	}{{-1, "1 2 3 4 5 1 2 3 4 5 gone\n"}, {1, "1 2 3 1 2 3 sleeps\n"}, {0, "1 2 1 2 gone\n"}, {2, "1 2 3 4 1 2 3 4 gone\n"}} {
		if look.back >= 0 {
			if back := d.tgr("vm", "rollback", id, list[look.back].ID); back.code != 0 {
				t.Fatalf("rollback to %s: %+v", list[look.back].Name, back)
			}
		}
		if got := d.tgrIn("", tell, "vm", "shell", id); got.stdout != look.want {
			t.Errorf("in the machine, with snapshot %d: %+v, want %q", look.back, got, look.want)
		}
	}
}

// standStill pauses a machine, whose clock is right and whose processes are there when it goes on.
func standStill(t *testing.T, d *daemon, id string, in func(string) result) {
	t.Helper()
	c, err := vmapi.NewClient(vmapi.ClientConfig{URL: d.url, Token: d.token})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Pause(t.Context(), id); err != nil {
		t.Fatalf("pause: %v", err)
	}
	if got := in("true"); got.code != 2 || !strings.Contains(got.stderr, "paused") {
		t.Errorf("exec while it stands still: %+v", got)
	}
	if v, err := c.Get(t.Context(), id, 0); err != nil || v.State != vmapi.Paused {
		t.Errorf("%+v, %v", v, err)
	}
	time.Sleep(2 * time.Second) // by which its clock is late
	if err := c.Resume(t.Context(), id); err != nil {
		t.Fatalf("resume: %v", err)
	}
	got := in("date +%s.%N; kill -0 $(cat ~/pid) && echo the process lives")
	clock, rest, _ := strings.Cut(got.stdout, "\n")
	at, err := strconv.ParseFloat(clock, 64)
	if off := float64(time.Now().UnixNano())/1e9 - at; err != nil || rest != "the process lives\n" || off < -0.1 || off > 1.9 {
		t.Errorf("after the pause: %+v; the clock is %.3f s late", got, off)
	}
}

// rollBack changes files and processes, and finds them as they were.
func rollBack(t *testing.T, d *daemon, id string, in func(string) result) {
	t.Helper()
	began := time.Now()
	snap := d.tgr("vm", "snapshot", "--name", "before", id)
	if strings.Contains(snap.stderr, "has no snapshots") {
		t.Logf("NOT TESTED: rollback: %s", snap.stderr)
		return
	}
	if snap.code != 0 {
		t.Fatalf("snapshot: %+v", snap)
	}
	t.Logf("snapshot after %v", time.Since(began))
	if got := in("echo after > ~/file; kill $(cat ~/pid); touch ~/new; sync; date +%s"); got.code != 0 {
		t.Fatalf("exec: %+v", got)
	}
	began = time.Now()
	if got := d.tgr("vm", "rollback", id, strings.TrimSpace(snap.stdout)); got.code != 0 {
		t.Fatalf("rollback: %+v", got)
	}
	t.Logf("rollback after %v", time.Since(began))
	got := in("cat ~/file; test ! -e ~/new && kill -0 $(cat ~/pid) && echo the process lives")
	if got.code != 0 || got.stdout != "before\nthe process lives\n" {
		t.Errorf("after the rollback: %+v", got)
	}
}
