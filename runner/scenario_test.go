package runner_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/runner"
	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/process"
	"github.com/terraphim/tgr/workflow"
)

var update = flag.Bool("update", false, "rewrite the expected results of the scenarios")

// TestScenarios runs the job of each testdata/*.txtar on a machine that is a process and compares what it shows with the
// file's last part, want. The files are:
//
//	workflow.yml        the workflow; its first job is run
//	repo/…              what actions/checkout gives
//	actions/o/r@ref/…   repositories of remote actions
//	want                the result, rewritten with -update
//
// Lines of the comment set options: secret NAME=VALUE, var NAME=VALUE, input NAME=VALUE, need JOB RESULT NAME=VALUE, event
// JSON, check-run ID, instance N (of the matrix, from 0), debug, cancel TEXT (cancel the job when the log shows the
// text; what follows "because of" is why), needs PROGRAM (skip without it), brief (leave out what the log shows of the set-up
// and of the steps' headers), group NAME,
// peers NAME=yes|no|partly and refused (for docs/compatibility.md), process-only REASON
// (TestScenariosVM leaves it out).
func TestScenarios(t *testing.T) {
	eachScenario(t, func(t *testing.T, file string, a *txtar.Archive) {
		got := runScenario(t, a)
		want := find(a, "want")
		if *update {
			setFile(a, "want", got)
			if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
				t.Fatal(err)
			}
			return
		}
		if diff := cmp.Diff(string(want), got); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	})
}

// eachScenario runs a subtest for each testdata/*.txtar, some at a time.
func eachScenario(t *testing.T, test func(t *testing.T, file string, a *txtar.Archive)) {
	t.Helper()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			test(t, file, a)
		})
	}
}

func runScenario(t *testing.T, a *txtar.Archive) string {
	t.Helper()
	s := newScenario(t, a)
	res, err := runner.Run(s.ctx, s.config, s.job)
	return s.show(res, err)
}

// scenario is one run of a job.
type scenario struct {
	ctx    context.Context
	base   string
	config runner.Config
	job    runner.Job
	sink   *sink
	brief  bool

	comment string // of its file
}

func newScenario(t testing.TB, a *txtar.Archive) *scenario {
	t.Helper()
	return newScenarioOn(t, a, newMachine(t))
}

func newScenarioOn(t testing.TB, a *txtar.Archive, m runner.Machine) *scenario {
	t.Helper()
	base := t.TempDir()
	ctx, cancel := context.WithCancelCause(t.Context())
	t.Cleanup(func() { cancel(nil) })
	s := &scenario{ctx: ctx, base: base, sink: &sink{cancel: cancel}, comment: string(a.Comment)}
	s.config = runner.Config{
		Machine: m,
		Sink:    s.sink,
		Dirs: runner.Dirs{Home: base + "/home", Workspace: base + "/work/app/app", Temp: base + "/temp", Tools: base + "/tools",
			Actions: base + "/actions"},
		Checkout: archive{a},
		Actions:  archive{a},
		Nodes:    nodes(),
		Env:      map[string]string{"PATH": os.Getenv("PATH"), "LANG": "C.UTF-8"},
		Runner:   runner.RunnerInfo{Name: "test"},
	}
	s.job = jobOf(t, a)
	s.options(t, string(a.Comment))
	return s
}

func nodes() map[string]string {
	node, err := exec.LookPath("node")
	if err != nil {
		return nil
	}
	return map[string]string{"node20": node, "node24": node}
}

// jobOf compiles the workflow and settles its first job.
func jobOf(t testing.TB, a *txtar.Archive) runner.Job {
	t.Helper()
	w, problems := workflow.Parse(".github/workflows/ci.yml", find(a, "workflow.yml"))
	if workflow.Failed(problems) {
		t.Fatalf("parse: %v", problems)
	}
	event := w.Events[0].Name
	p, problems := workflow.Compile(w, workflow.Options{Trigger: workflow.Trigger{Event: event}})
	if workflow.Failed(problems) {
		t.Fatalf("compile: %v", problems)
	}
	github := map[string]any{
		"repository": "octo/app", "repository_owner": "octo", "sha": "0123456789abcdef0123456789abcdef01234567",
		"ref": "refs/heads/main", "ref_name": "main", "ref_type": "branch", "ref_protected": false, "event_name": event,
		"actor": "mona", "run_id": "7", "run_number": "3", "run_attempt": "1", "workflow": p.Name,
		"workflow_ref": "octo/app/.github/workflows/ci.yml@refs/heads/main", "workflow_sha": "0123456789abcdef0123456789abcdef01234567",
	}
	job := &p.Jobs[0]
	instances, err := job.Expand(p, &workflow.Scope{GitHub: github})
	if err != nil {
		t.Fatalf("expand: %v", err)
	}
	return runner.Job{Plan: p, Job: job, Instance: instances[0], GitHub: github, Event: []byte(`{"number": 1}`),
		Vars: map[string]string{}, Secrets: map[string]string{}, Needs: map[string]workflow.Need{}}
}

// instanceOf is one of the combinations of a job's matrix.
func instanceOf(t testing.TB, j runner.Job, number string) workflow.Instance {
	t.Helper()
	all, err := j.Job.Expand(j.Plan, &workflow.Scope{GitHub: j.GitHub})
	n, nerr := strconv.Atoi(number)
	if err != nil || nerr != nil || n < 0 || n >= len(all) {
		t.Fatalf("instance %s of %d: %v", number, len(all), err)
	}
	return all[n]
}

func (s *scenario) options(t testing.TB, comment string) {
	t.Helper()
	for line := range strings.Lines(comment) {
		key, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		name, value, _ := strings.Cut(rest, "=")
		switch key {
		case "secret":
			s.job.Secrets[name] = strings.ReplaceAll(value, `\n`, "\n")
		case "var":
			s.job.Vars[name] = value
		case "input":
			if s.job.Inputs == nil {
				s.job.Inputs = map[string]any{}
			}
			s.job.Inputs[name] = value
		case "need":
			f := strings.Fields(rest)
			k, v, _ := strings.Cut(f[2], "=")
			s.job.Needs[f[0]] = workflow.Need{Result: f[1], Outputs: map[string]string{k: v}}
			s.job.Job.Needs = []string{f[0]}
		case "event":
			s.job.Event = json.RawMessage(rest)
		case "token":
			s.job.Token = rest
		case "debug":
			s.job.Debug = true
		case "group", "peers", "refused", "process-only": // of docs/compatibility.md
		case "instance":
			s.job.Instance = instanceOf(t, s.job, rest)
		case "check-run":
			id, err := strconv.ParseInt(rest, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			s.job.CheckRun = id
		case "brief":
			s.brief = true
		case "cancel":
			s.sink.trigger, s.sink.cause, _ = strings.Cut(rest, " because of ")
		case "needs":
			if _, err := exec.LookPath(rest); err != nil {
				t.Skipf("%s is not installed", rest)
			}
		case "#", "":
		default:
			t.Fatalf("unknown option %q", line)
		}
	}
}

// show is the golden form of a result.
func (s *scenario) show(res runner.Result, err error) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s", res.Conclusion)
	if res.Blame != "" {
		fmt.Fprintf(&b, " (%s)", res.Blame)
	}
	fmt.Fprintf(&b, " %s\n", res.Reason)
	if err != nil {
		fmt.Fprintf(&b, "error: %v\n", err)
	}
	names := make([]string, 0, len(res.Outputs))
	for name := range res.Outputs {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(&b, "output %s=%s\n", name, res.Outputs[name])
	}
	slices.SortStableFunc(res.Annotations, func(a, b tgr.Annotation) int { return a.Step - b.Step }) // some steps run at once
	for _, a := range res.Annotations {
		fmt.Fprintf(&b, "%s [%d] %s:%d:%d-%d:%d %s %q\n", a.Level, a.Step, a.File, a.Line, a.Column, a.EndLine, a.EndColumn, a.Title, a.Message)
	}
	for _, m := range res.Summaries {
		fmt.Fprintf(&b, "summary [%d] %q\n", m.Step, m.Markdown)
	}
	s.sink.mu.Lock()
	defer s.sink.mu.Unlock()
	for _, st := range res.Steps {
		fmt.Fprintf(&b, "%d %s: %s", st.Number, st.Name, st.Conclusion)
		if st.Outcome != st.Conclusion {
			fmt.Fprintf(&b, " (outcome %s)", st.Outcome)
		}
		if st.ExitCode != nil {
			fmt.Fprintf(&b, " exit %d", *st.ExitCode)
		}
		b.WriteString("\n")
		header := s.brief && (st.ID == "__setup" || st.ID == "__complete")
		for _, l := range s.sink.lines {
			if l.Step != st.Number {
				continue
			}
			if s.brief && strings.HasPrefix(l.Text, "##[group]Run ") {
				header = true
			}
			if !header || strings.Contains(l.Text, "##[error]") || strings.Contains(l.Text, "##[warning]") {
				fmt.Fprintf(&b, "\t%s\n", l.Text)
			}
			header = header && l.Text != "##[endgroup]"
		}
	}
	text := b.String()
	if s.config.Dirs.Commands != "" { // elsewhere than below the base, where they are otherwise
		text = strings.ReplaceAll(text, s.config.Dirs.Commands, s.base+"/temp/_runner_file_commands")
	}
	text = strings.ReplaceAll(text, s.base, "$BASE")
	return commandFile.ReplaceAllString(strings.ReplaceAll(text, "\r", `\r`), "_runner_file_commands/N")
}

var commandFile = regexp.MustCompile(`_runner_file_commands/\d+`)

// sink keeps what a job shows, and cancels it when the log shows the trigger.
type sink struct {
	mu      sync.Mutex
	lines   []tgr.LogLine
	steps   [][]tgr.Step
	trigger string
	cause   string // "": that of somebody who just stopped it
	cancel  context.CancelCauseFunc
}

func (s *sink) Line(l tgr.LogLine) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, l)
	if s.trigger != "" && strings.Contains(l.Text, s.trigger) && !strings.HasPrefix(l.Text, "##[group]") && !strings.Contains(l.Text, "echo") {
		if s.cause != "" {
			s.cancel(errors.New(s.cause))
			return
		}
		s.cancel(context.Canceled)
	}
}

func (s *sink) Steps(steps []tgr.Step) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps = append(s.steps, steps)
}

// TestMain makes the test's own program the agent of its machines.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "agent" {
		os.Exit(guest.Main(os.Args[2:], "test", os.Stderr))
	}
	os.Exit(m.Run())
}

// newMachine starts an agent as a child process.
func newMachine(t testing.TB) runner.Machine {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.WithoutCancel(t.Context())
	m, err := process.New(process.Config{Agent: []string{program, "agent"}, Dir: t.TempDir()}).Start(ctx, vm.Spec{ID: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	conn, err := m.Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c, err := guest.Connect(ctx, conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// archive is the host's side of a scenario: repositories that are folders of the archive.
type archive struct{ a *txtar.Archive }

func (s archive) Checkout(_ context.Context, r runner.CheckoutRequest) (runner.CheckoutResult, error) {
	if r.Repository != "octo/app" {
		return runner.CheckoutResult{}, tgr.Errorf("source.checkout", tgr.NotFound, "repository %s not found", r.Repository)
	}
	if r.Ref == "broken" {
		return runner.CheckoutResult{}, errors.New("disk on fire")
	}
	ref, sha := r.Ref, r.SHA
	if ref == "" {
		ref = "refs/heads/main"
	}
	if sha == "" {
		sha = strings.Repeat("a", 40)
	}
	return runner.CheckoutResult{SHA: sha, Ref: ref, Tar: s.tar("repo/")}, nil
}

func (s archive) Action(_ context.Context, repo, ref string) (string, io.ReadCloser, error) {
	commit := strings.Repeat("b", 40) // of every action
	if ref == commit {
		i := slices.IndexFunc(s.a.Files, func(f txtar.File) bool { return strings.HasPrefix(f.Name, "actions/"+repo+"@") })
		ref, _, _ = strings.Cut(strings.TrimPrefix(s.a.Files[i].Name, "actions/"+repo+"@"), "/")
	}
	prefix := "actions/" + repo + "@" + ref + "/"
	if !slices.ContainsFunc(s.a.Files, func(f txtar.File) bool { return strings.HasPrefix(f.Name, prefix) }) {
		return "", nil, tgr.Errorf("source.action", tgr.NotFound, "there is no %s", ref)
	}
	return commit, s.tar(prefix), nil
}

func (s archive) tar(prefix string) io.ReadCloser {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range s.a.Files {
		if name, ok := strings.CutPrefix(f.Name, prefix); ok {
			w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path.Clean(name), Mode: 0o755, Size: int64(len(f.Data)), ModTime: time.Unix(1, 0)})
			w.Write(f.Data)
		}
	}
	w.Close()
	return io.NopCloser(&b)
}

func find(a *txtar.Archive, name string) []byte {
	for _, f := range a.Files {
		if f.Name == name {
			return f.Data
		}
	}
	return nil
}

func setFile(a *txtar.Archive, name, data string) {
	for i := range a.Files {
		if a.Files[i].Name == name {
			a.Files[i].Data = []byte(data)
			return
		}
	}
	a.Files = append(a.Files, txtar.File{Name: name, Data: []byte(data)})
}
