package runner_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/runner"
)

// steps makes a scenario of a workflow whose steps are given.
func steps(t *testing.T, yaml string) *scenario {
	t.Helper()
	return newScenario(t, txtar.Parse([]byte("-- workflow.yml --\non: push\njobs:\n  j:\n    runs-on: x\n    steps:\n"+yaml+"\n-- repo/a --\n-- end --\n")))
}

// wrapped is a machine with something between it and the runner.
type wrapped struct {
	runner.Machine
	puts, execs, gets atomic.Int32
	exec              func(ctx context.Context, c guest.Cmd, out io.Writer) (guest.Exit, error)
	put               func() error
	get               func(path string) (io.ReadCloser, error)
}

func (w *wrapped) Exec(ctx context.Context, c guest.Cmd, out io.Writer) (guest.Exit, error) {
	w.execs.Add(1)
	if w.exec != nil {
		return w.exec(ctx, c, out)
	}
	return w.Machine.Exec(ctx, c, out)
}

func (w *wrapped) Put(ctx context.Context, dir string, tar io.Reader) error {
	w.puts.Add(1)
	if w.put != nil {
		if err := w.put(); err != nil {
			return err
		}
	}
	return w.Machine.Put(ctx, dir, tar)
}

func (w *wrapped) Get(ctx context.Context, path string) (io.ReadCloser, error) {
	w.gets.Add(1)
	if w.get != nil {
		return w.get(path)
	}
	return w.Machine.Get(ctx, path)
}

func wrap(s *scenario) *wrapped {
	w := &wrapped{Machine: s.config.Machine}
	s.config.Machine = w
	return w
}

// TestCost holds a script to one Put, one Exec and one Get.
func TestCost(t *testing.T) {
	s := steps(t, "      - run: echo 1\n      - run: echo 2\n      - run: echo 3")
	w := wrap(s)
	if res, err := runner.Run(s.ctx, s.config, s.job); err != nil || res.Conclusion != tgr.Success {
		t.Fatal(res, err)
	}
	const setUp = 2 // the event's payload, the workspace
	if diff := cmp.Diff([]int32{setUp + 3, 3, 3}, []int32{w.puts.Load(), w.execs.Load(), w.gets.Load()}); diff != "" {
		t.Errorf("Put, Exec, Get: -want +got:\n%s", diff)
	}
}

// TestStepStates follows the steps through the state machine of the vocabulary.
func TestStepStates(t *testing.T) {
	s := steps(t, "      - run: echo 1\n      - run: exit 1\n      - run: echo 3")
	if _, err := runner.Run(s.ctx, s.config, s.job); err != nil {
		t.Fatal(err)
	}
	last := map[int]tgr.Status{}
	for _, snapshot := range s.sink.steps {
		for i, st := range snapshot {
			if st.Number != i+1 {
				t.Fatalf("step %d has number %d", i, st.Number)
			}
			if was, ok := last[i]; ok && was != st.Status {
				if err := tgr.NextStep(was, st.Status); err != nil {
					t.Errorf("step %s: %v", st.Name, err)
				}
			}
			last[i] = st.Status
			if st.Status.Done() != (st.Conclusion != "") || st.Status.Done() && st.Finished.Before(st.Started) {
				t.Errorf("step %+v", st)
			}
		}
	}
	for i, status := range last {
		if status != tgr.Completed {
			t.Errorf("step %d ended as %s", i+1, status)
		}
	}
}

// TestMachineDies is a fault of ours, whatever the machine was doing.
func TestMachineDies(t *testing.T) {
	lost := fmt.Errorf("exec: %w: EOF", guest.ErrLost)
	for name, break_ := range map[string]func(*wrapped){
		"exec": func(w *wrapped) {
			w.exec = func(context.Context, guest.Cmd, io.Writer) (guest.Exit, error) { return guest.Exit{}, lost }
		},
		"protocol": func(w *wrapped) {
			w.exec = func(context.Context, guest.Cmd, io.Writer) (guest.Exit, error) {
				return guest.Exit{}, guest.ErrProtocol
			}
		},
		"get": func(w *wrapped) { w.get = func(string) (io.ReadCloser, error) { return nil, lost } },
		"read": func(w *wrapped) {
			w.get = func(string) (io.ReadCloser, error) { return io.NopCloser(failing{lost}), nil }
		},
		"put": func(w *wrapped) {
			n := 0
			w.put = func() error {
				if n++; n > 2 {
					return lost
				}
				return nil
			}
		},
		"set up": func(w *wrapped) { w.put = func() error { return lost } },
	} {
		t.Run(name, func(t *testing.T) {
			s := steps(t, "      - run: echo 1\n        continue-on-error: true\n      - if: always()\n        run: echo never")
			break_(wrap(s))
			res, err := runner.Run(s.ctx, s.config, s.job)
			if err == nil || tgr.BlameOf(err) != tgr.BlameOurs || res.Blame != tgr.BlameOurs || res.Conclusion != tgr.Failure {
				t.Fatalf("%+v, %v", res, err)
			}
			for _, st := range res.Steps {
				if !st.Status.Done() {
					t.Errorf("step %s is %s", st.Name, st.Status)
				}
			}
			if log := s.show(res, err); strings.Contains(log, "never\n\t") {
				t.Error(log)
			}
		})
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// TestHostileTar is a machine that answers with rubbish in the place of the command files.
func TestHostileTar(t *testing.T) {
	for name, body := range map[string]io.Reader{
		"garbage": strings.NewReader(strings.Repeat("garbage!", 1000)),
		"endless": endless{},
	} {
		t.Run(name, func(t *testing.T) {
			s := steps(t, "      - run: echo 1")
			wrap(s).get = func(string) (io.ReadCloser, error) { return io.NopCloser(body), nil }
			res, err := runner.Run(s.ctx, s.config, s.job)
			if err != nil || res.Conclusion != tgr.Failure || res.Blame != tgr.BlameUser {
				t.Fatalf("%+v, %v", res, err)
			}
		})
	}
}

// endless is a tar with one file that never ends.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

// TestNoExit is a process of which the machine says nothing: that is a failure.
func TestNoExit(t *testing.T) {
	s := steps(t, "      - run: echo 1")
	wrap(s).exec = func(context.Context, guest.Cmd, io.Writer) (guest.Exit, error) { return guest.Exit{}, nil }
	res, err := runner.Run(s.ctx, s.config, s.job)
	if err != nil || res.Conclusion != tgr.Failure {
		t.Fatalf("%+v, %v", res, err)
	}
}

// TestShortage is a machine that ran out of something: the step says so, and says it of a signal, too.
func TestShortage(t *testing.T) {
	for _, tt := range []struct {
		exit guest.Exit
		want string
	}{
		{guest.Exit{Started: true, Code: 1, Shortage: guest.OutOfDisk}, "exit code 1: the machine's disk is full."},
		{guest.Exit{Started: true, Code: 1, Shortage: guest.OutOfFiles}, "exit code 1: the machine's disk has as many files as it can have (inodes)."},
		{guest.Exit{Started: true, Code: 137, Signal: "SIGKILL", Shortage: guest.OutOfMemory}, "exit code 137: the machine ran out of memory, and its kernel killed a process."},
		{guest.Exit{Started: true, Code: 137, Signal: "SIGKILL", Shortage: guest.OutOfProcesses}, "exit code 137: the job started more processes than its machine has room for."},
		{guest.Exit{Started: true, Code: 137, Signal: "SIGKILL"}, "exit code 137 (SIGKILL)."},
	} {
		s := steps(t, "      - run: echo 1")
		wrap(s).exec = func(context.Context, guest.Cmd, io.Writer) (guest.Exit, error) { return tt.exit, nil }
		res, err := runner.Run(s.ctx, s.config, s.job)
		if err != nil || res.Conclusion != tgr.Failure || !strings.HasSuffix(res.Reason, tt.want) {
			t.Errorf("%+v: %q, %v; want %q", tt.exit, res.Reason, err, tt.want)
		}
	}
}

// TestCancelledBefore is a job that is cancelled before it starts: only what wants to run for a cancelled job does.
func TestCancelledBefore(t *testing.T) {
	s := steps(t, "      - run: echo never\n      - if: always()\n        run: echo always")
	ctx, cancel := context.WithCancelCause(s.ctx)
	cancel(errors.New("superseded by a newer run"))
	res, err := runner.Run(ctx, s.config, s.job)
	if err != nil || res.Conclusion != tgr.Cancelled || res.Reason != "The operation was canceled: superseded by a newer run" {
		t.Fatalf("%+v, %v", res, err)
	}
	if diff := cmp.Diff([]tgr.Conclusion{"success", "skipped", "success", "success"}, conclusions(res)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// TestTimeoutCause is a context whose cause is the job's time.
func TestTimeoutCause(t *testing.T) {
	s := steps(t, "      - run: sleep 30")
	ctx, cancel := context.WithTimeoutCause(s.ctx, 50*time.Millisecond, runner.ErrTimeout)
	defer cancel()
	res, err := runner.Run(ctx, s.config, s.job)
	if err != nil || res.Conclusion != tgr.TimedOut {
		t.Fatalf("%+v, %v", res, err)
	}
}

// TestWindUp ends what a cancelled job goes on to do when its time for that is up.
func TestWindUp(t *testing.T) {
	s := steps(t, "      - run: echo READY; sleep 30\n      - if: always()\n        run: sleep 30\n      - if: always()\n        run: echo never")
	s.sink.trigger = "READY"
	s.job.Instance.CancelTimeout = 0.005
	s.config.Limits.Grace = 50 * time.Millisecond
	start := time.Now()
	res, err := runner.Run(s.ctx, s.config, s.job)
	if err != nil || res.Conclusion != tgr.Cancelled {
		t.Fatalf("%+v, %v", res, err)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
	if diff := cmp.Diff([]tgr.Conclusion{"success", "cancelled", "cancelled", "cancelled", "success"}, conclusions(res)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// TestStubborn ends a process that ignores every signal but the last.
func TestStubborn(t *testing.T) {
	s := steps(t, "      - run: trap '' INT TERM; echo READY; while true; do sleep 0.1; done")
	s.sink.trigger = "READY"
	s.config.Limits.Grace = 50 * time.Millisecond
	res, err := runner.Run(s.ctx, s.config, s.job)
	if err != nil || res.Conclusion != tgr.Cancelled {
		t.Fatalf("%+v, %v", res, err)
	}
}

func conclusions(res runner.Result) []tgr.Conclusion {
	var cs []tgr.Conclusion
	for _, st := range res.Steps {
		cs = append(cs, st.Conclusion)
	}
	return cs
}

// TestActionEnv gives the tokens of services to actions and keeps them from scripts.
func TestActionEnv(t *testing.T) {
	a := txtar.Parse([]byte(`-- workflow.yml --
on: push
jobs:
  j:
    runs-on: x
    steps:
      - run: echo "script [$ACTIONS_RUNTIME_URL] [$ACTIONS_ID_TOKEN_REQUEST_URL]"
      - uses: o/js@v1
      - uses: o/js@v1
        with: {Run-ID: 7}
-- actions/o/js@v1/action.yml --
name: js
description: d
inputs: {Run-ID: {}}
runs: {using: node20, main: m.js}
-- actions/o/js@v1/m.js --
console.log("action", process.env.ACTIONS_RUNTIME_URL, process.env.ACTIONS_RUNTIME_TOKEN)
console.log("api", process.env["INPUT_RUN-ID"], process.env.GITHUB_API_URL)
`))
	s := newScenario(t, a)
	if s.config.Nodes == nil {
		t.Skip("node is not installed")
	}
	s.config.ActionEnv = map[string]string{"ACTIONS_RUNTIME_URL": "http://x/", "ACTIONS_RUNTIME_TOKEN": "runtime-token", "ACTIONS_ID_TOKEN_REQUEST_URL": "http://id"}
	s.job.GitHub["api_url"] = "https://api"
	s.config.InputEnv = func(inputs map[string]string) map[string]string {
		if inputs["run-id"] != "7" {
			return nil
		}
		return map[string]string{"GITHUB_API_URL": "http://here"}
	}
	log := s.show(runner.Run(s.ctx, s.config, s.job))
	for _, want := range []string{"script [] [http://id]", "action http://x/ ***", "api  https://api", "api 7 http://here"} {
		if !strings.Contains(log, want) {
			t.Errorf("no %q in:\n%s", want, log)
		}
	}
}

// TestNoSources runs without anything to check out or to fetch.
func TestNoSources(t *testing.T) {
	s := steps(t, "      - uses: actions/checkout@v4")
	s.config.Checkout = nil
	if res, err := runner.Run(s.ctx, s.config, s.job); err != nil || res.Blame != tgr.BlameWorkflow {
		t.Errorf("%+v, %v", res, err)
	}
	s = steps(t, "      - uses: some/action@v1")
	s.config.Actions = nil
	if res, err := runner.Run(s.ctx, s.config, s.job); err != nil || res.Blame != tgr.BlameWorkflow {
		t.Errorf("%+v, %v", res, err)
	}
}

// slow is a sink that takes its time, and knows how far the job is ahead of it.
type slow struct {
	sink
	bytes atomic.Int64
	wait  time.Duration
}

func (s *slow) Line(l tgr.LogLine) {
	s.bytes.Add(int64(len(l.Text)))
	if n := s.bytes.Load(); n%(1<<20) < int64(len(l.Text)) {
		time.Sleep(s.wait) // once per MiB
	}
}

// TestFlood lets a step print 64 MiB, and one line of 8 MiB, through a sink that is slow.
func TestFlood(t *testing.T) {
	s := steps(t, "      - run: |\n          yes 'a line of some length' | head -c 67108864\n          head -c 8388608 /dev/zero | tr '\\0' x")
	out := &slow{wait: time.Millisecond}
	s.config.Sink = out
	res, err := runner.Run(s.ctx, s.config, s.job)
	if err != nil || res.Conclusion != tgr.Success {
		t.Fatalf("%+v, %v", res, err)
	}
	if n := out.bytes.Load(); n < 68<<20 {
		t.Errorf("%d bytes", n)
	}
}

// BenchmarkStep measures a step beside the process that it runs.
func BenchmarkStep(b *testing.B) {
	const n = 20
	a := txtar.Parse([]byte("-- workflow.yml --\non: push\njobs:\n  j:\n    runs-on: x\n    steps:\n" + strings.Repeat("      - run: 'true'\n", n)))
	s := newScenario(b, a)
	b.ResetTimer()
	for b.Loop() {
		if res, err := runner.Run(s.ctx, s.config, s.job); err != nil || res.Conclusion != tgr.Success {
			b.Fatal(res, err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*n)/1000, "ms/step")
}

// BenchmarkProcess is what the same processes cost without a runner.
func BenchmarkProcess(b *testing.B) {
	m := newMachine(b)
	for b.Loop() {
		if exit, err := m.Exec(b.Context(), guest.Cmd{Args: []string{"bash", "-e", "-c", "true"}, Env: []string{"PATH=/usr/bin:/bin"}}, io.Discard); err != nil || !exit.Success() {
			b.Fatal(exit, err)
		}
	}
}

// TestShellFallback runs scripts where neither bash nor python has its usual name.
func TestShellFallback(t *testing.T) {
	bin := t.TempDir()
	for name, target := range map[string]string{"sh": "sh", "python3": "sh", "echo": "echo"} {
		program, err := exec.LookPath(target)
		if err != nil {
			t.Skip(err)
		}
		if err := os.Symlink(program, bin+"/"+name); err != nil {
			t.Fatal(err)
		}
	}
	s := steps(t, "      - run: echo \"default $0\"\n      - shell: python\n        run: echo \"python $0\"\n      - shell: bash\n        run: echo never")
	s.config.Env["PATH"] = bin
	log := s.show(runner.Run(s.ctx, s.config, s.job))
	for _, want := range []string{"\tdefault $BASE", "\tpython $BASE", "##[error]bash: command not found"} {
		if !strings.Contains(log, want) {
			t.Errorf("no %q in:\n%s", want, log)
		}
	}
}

// A machine without runtimes is given the one that an action asks for, when it does.
func TestNodeFetched(t *testing.T) {
	for name, tc := range map[string]struct {
		node       func(ctx context.Context, name string) (string, error)
		conclusion tgr.Conclusion
		blame      tgr.Blame
		says       string
	}{
		"there":     {func(context.Context, string) (string, error) { return "/bin/echo", nil }, tgr.Success, "", "actions/act/a/v1/main.js"},
		"none such": {func(context.Context, string) (string, error) { return "", fs.ErrNotExist }, tgr.Failure, tgr.BlameWorkflow, "this machine has no node20"},
		"offline":   {func(context.Context, string) (string, error) { return "", errors.New("the net is down") }, tgr.Failure, tgr.BlameOurs, "could not be fetched"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScenario(t, txtar.Parse([]byte("-- workflow.yml --\non: push\njobs:\n  j:\n    runs-on: x\n    steps:\n      - run: echo 1\n      - uses: act/a@v1\n"+
				"-- actions/act/a@v1/action.yml --\nname: a\nruns: {using: node20, main: main.js}\n-- actions/act/a@v1/main.js --\n-- end --\n")))
			s.config.Nodes = nil
			var asked []string
			s.config.Node = func(ctx context.Context, name string) (string, error) {
				asked = append(asked, name)
				return tc.node(ctx, name)
			}
			res, err := runner.Run(s.ctx, s.config, s.job)
			if res.Conclusion != tc.conclusion || tgr.BlameOf(err) == tgr.BlameOurs != (tc.blame == tgr.BlameOurs) {
				t.Errorf("%+v, %v", res, err)
			}
			if text := fmt.Sprint(s.sink.lines, res, err); !strings.Contains(text, tc.says) {
				t.Errorf("%q is not in %s", tc.says, text)
			}
			if len(asked) == 0 || asked[0] != "node20" {
				t.Errorf("asked for %q", asked)
			}
		})
	}
}
