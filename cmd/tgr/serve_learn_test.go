package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/learn"
	"github.com/terraphim/tgr/web"
	"github.com/terraphim/tgr/workflow"
)

// The same files under another commit are the same code: a job that fails and passes there is flaky, and nothing mended it.
func TestServeSameTree(t *testing.T) {
	s := openSite(t)
	odd := filepath.Join(t.TempDir(), "odd")
	repo := s.repo("acme/tree", map[string]string{workflowDir + "/ci.yml": fmt.Sprintf(`on: push
jobs:
  test:
    runs-on: linux
    steps:
      - name: flip
        run: |
          echo x >>%[1]s
          [ $(( $(wc -l <%[1]s) %% 2 )) = 0 ] || { echo "error: not this time"; exit 1; }
`, odd)})
	trees := map[string]bool{}
	for range 10 { // each a commit of its own, with the same files
		run := s.completed(s.push(repo, map[string]string{}))[0]
		if len(run.Event.Tree) != 40 {
			t.Fatalf("the run's tree is %q", run.Event.Tree)
		}
		trees[run.Event.Tree] = true
	}
	if len(trees) != 1 {
		t.Fatalf("ten commits of the same files have %d trees", len(trees))
	}
	var in tgr.Insights
	s.await("ten jobs", func() bool {
		var err error
		in, err = s.client.Insights(t.Context(), "acme/tree", false, "")
		return err == nil && in.Jobs == 10
	})
	if len(in.Flaky) != 1 || !in.Flaky[0].Definite || in.Flaky[0].Step != "flip" || len(in.Failures) != 1 || len(in.Failures[0].Fixes) != 0 {
		t.Errorf("flaky: %+v, failures: %+v", in.Flaky, in.Failures)
	}
}

// Where somebody asks for it, what chance has failed is repeated once, as soon as that is known to be chance; nothing else is.
func TestServeRetriesFlakySteps(t *testing.T) {
	s := openSite(t, "TGR_RETRY_FLAKY=true")
	odd := filepath.Join(t.TempDir(), "odd")
	repo := s.repo("acme/retried", map[string]string{workflowDir + "/ci.yml": fmt.Sprintf(`on: push
jobs:
  steady: {runs-on: linux, steps: [{run: echo steady}]}
  test:
    runs-on: linux
    steps:
      - name: flip
        run: |
          echo x >>%[1]s
          [ $(( $(wc -l <%[1]s) %% 2 )) = 0 ] || exit 1
      - uses: actions/checkout@v4
      - name: checked
        run: test ! -e broken
`, odd)})
	learnt := 0
	push := func(files map[string]string) web.RunDetail {
		t.Helper()
		run := s.completed(s.push(repo, files))[0]
		learnt += 2
		s.await("what was learnt", func() bool {
			in, err := s.client.Insights(t.Context(), "acme/retried", false, "")
			return err == nil && int(in.Jobs) >= learnt
		})
		return run
	}
	for i := range learn.Enough {
		if run := push(nil); run.Attempt != 1 || (run.Conclusion == tgr.Failure) != (i%2 == 0) {
			t.Fatalf("run %d: %s at attempt %d: nothing was known yet", i, run.Conclusion, run.Attempt)
		}
	}
	again := func(d web.RunDetail) web.RunDetail {
		t.Helper()
		s.await("the second attempt", func() bool {
			var err error
			d, err = s.client.Run(t.Context(), d.ID, 0)
			return err == nil && d.Attempt == 2 && d.Status.Done()
		})
		return d
	}
	run := again(s.completed(s.push(repo, nil))[0]) // fails, and passes when it is repeated
	if run.Conclusion != tgr.Success {
		t.Errorf("repeated: %s", run.Conclusion)
	}
	for _, j := range run.Jobs {
		if (j.Origin != 0) != (j.Key == "steady") {
			t.Errorf("%s of the second attempt comes from job %d", j.Key, j.Origin)
		}
	}
	broken := again(s.completed(s.push(repo, map[string]string{"broken": "yes"}))[0]) // by chance first, and then for good
	again(s.completed(s.push(repo, nil))[0])
	if d, err := s.client.Run(t.Context(), broken.ID, 0); err != nil || d.Attempt != 2 || d.Conclusion != tgr.Failure {
		t.Errorf("what does not fail by chance: %s at attempt %d, %v", d.Conclusion, d.Attempt, err)
	}
}

// Runs are learnt from, the pull request hears of what helped, and a rebuild gives the same state.
func TestServeLearns(t *testing.T) {
	s := openSite(t, "TGR_LEARN_TIMEOUTS=true")
	repo := s.repo("acme/learns", map[string]string{"broken": "yes", workflowDir + "/ci.yml": `name: CI
on: [push, pull_request]
jobs:
  test:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - run: make -v || gmake || true
      - name: Unit tests
        run: |
          go test ./... 2>/dev/null || true
          if [ -s broken ]; then echo "Error: the widget 0x$RANDOM is broken"; exit 3; fi
`})
	for i := range 11 {
		files := map[string]string{"n": strconv.Itoa(i)}
		if i == 3 {
			files["broken"] = "" // mended
		}
		run := s.completed(s.push(repo, files))[0]
		if want := map[bool]tgr.Conclusion{true: tgr.Failure, false: tgr.Success}[i < 3]; run.Conclusion != want {
			t.Fatalf("push %d: %s, want %s", i, run.Conclusion, want)
		}
	}
	var in tgr.Insights
	s.await("what was learnt", func() bool {
		var err error
		in, err = s.client.Insights(t.Context(), "acme/learns", false, "go test ./...")
		return err == nil && in.Jobs == 11
	})
	if len(in.Failures) != 1 || in.Failures[0].N != 3 || len(in.Lessons) != 1 || in.Command == nil || in.Command.N != 0 {
		data, _ := json.MarshalIndent(in, "", " ")
		t.Errorf("insights: %s", data)
	}
	if at := slices.IndexFunc(in.Timings, func(x tgr.Timing) bool { return x.Step == "Unit tests" }); at < 0 || in.Timings[at].CPU <= 0 || in.Timings[at].MemoryMiB != 0 {
		t.Errorf("what the step took of a process without isolation: %+v", in.Timings)
	}
	if page := s.get("/insights?repo=acme%2Flearns"); !strings.HasPrefix(page, "200 ") || !strings.Contains(page, "the widget") || !strings.Contains(page, `href="/runs/`) {
		t.Errorf("the page of insights: %s", page)
	}
	out := s.show("insights", "acme/learns")
	for _, want := range []string{"learnt from 11 jobs", "went away with broken n", "3 times: ", "the widget", "ci.yml / test / ", "not measured: memory"} {
		if !strings.Contains(out, want) {
			t.Errorf("tgr insights does not say %q:\n%s", want, out)
		}
	}
	if _, err := s.client.Insights(t.Context(), "acme/unknown", false, ""); tgr.CodeOf(err) != tgr.NotFound {
		t.Errorf("of an unknown repository: %v", err)
	}
	if log := s.logOf(s.completed(s.push(repo, map[string]string{"n": "last"}))[0]); !strings.Contains(log, "learnt from earlier runs") {
		t.Errorf("the job's log does not say that its time-out was learnt: %s", log)
	}
	if got := rebuild(s); got == nil {
		t.Error("rebuilt while the server runs")
	}
	s.stop()
	if err := rebuild(s); err != nil {
		t.Error(err)
	}
}

// rebuild runs tgr learn rebuild on the site's data; an error says how it was not the same.
func rebuild(s *site) error {
	cmd := exec.Command("tgr", "learn", "rebuild", "--data-dir", filepath.Join(s.data, "data"), "--json")
	cmd.Env = append(cmd.Environ(), "TGR_CONFIG=/dev/null")
	out, err := cmd.Output()
	if err != nil {
		return err
	}
	var r learn.Report
	if err := json.Unmarshal(out, &r); err != nil {
		return err
	}
	if !r.Same() || r.Records != 12 || r.Lost != 0 {
		return tgr.Errorf("test", tgr.Internal, "the report is %s", out)
	}
	return nil
}

// With the kill switch nothing is learnt and the API says why; runs go on.
func TestServeLearnsNothing(t *testing.T) {
	s := openSite(t, "TGR_LEARN=false")
	repo := s.repo("acme/off", map[string]string{workflowDir + "/ci.yml": "on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n      - run: echo hello\n"})
	if run := s.completed(s.push(repo, map[string]string{"x": "y"}))[0]; run.Conclusion != tgr.Success {
		t.Errorf("the run is %s", run.Conclusion)
	}
	if _, err := s.client.Insights(t.Context(), "acme/off", false, ""); tgr.CodeOf(err) != tgr.Unavailable {
		t.Errorf("insights: %v, want that the learner is off", err)
	}
	if _, err := filepath.Glob(filepath.Join(s.data, "data", "learn.db")); err != nil {
		t.Error(err)
	}
}

// What steps ran is found in the plan, also below called workflows, and hooks run nothing of it.
func TestCommandsOf(t *testing.T) {
	build := workflow.Job{Key: "build", Steps: []workflow.Step{{ID: "__a", Uses: "actions/checkout@v4"}, {ID: "__run", Run: "\nnpm ci\n"}, {ID: "t", Name: "Test ${{ matrix.go }}", Run: "go test"},
		{ID: "__p", Parallel: []workflow.Step{{ID: "__q", Run: "make lint"}}}}}
	inner := &workflow.Plan{Jobs: []workflow.Job{build}}
	plan, err := json.Marshal(workflow.Plan{Jobs: []workflow.Job{build, {Key: "deploy", Call: &workflow.Call{Plan: inner}}}})
	if err != nil {
		t.Fatal(err)
	}
	steps := []tgr.Step{{Number: 1, ID: "__setup", Name: "Set up job"}, {Number: 2, Name: "Pre Run actions/checkout@v4"}, {Number: 3, Name: "Run actions/checkout@v4"}, {Number: 4, Name: "Run npm ci"},
		{Number: 5, ID: "t", Name: "Test 1.26"}, {Number: 6, Name: "Run make lint"}, {Number: 7, ID: "t", Name: "Post Test 1.26"}}
	for _, key := range []string{"build", "deploy/build", "deploy[2]/build"} {
		got := commandsOf(plan, tgr.Job{Key: key, Steps: steps})
		if len(got) != 4 || got[3].Uses != "actions/checkout@v4" || learn.Template(got[4].Run, "") != "npm ci" || got[5].Run != "go test" || got[6].Run != "make lint" {
			t.Errorf("%s: %+v", key, got)
		}
	}
	for _, key := range []string{"nothing", "build/nothing", "/", ""} {
		if got := commandsOf(plan, tgr.Job{Key: key, Steps: steps}); len(got) != 0 {
			t.Errorf("%q: %+v", key, got)
		}
	}
	if got := commandsOf([]byte("{"), tgr.Job{Key: "build"}); got != nil {
		t.Errorf("of a plan that cannot be read: %v", got)
	}
}

var _ web.Learned = (*learner)(nil)

// The measures are printed beside their baselines, and are the same for the same history.
func TestEvalLearn(t *testing.T) {
	var first string
	for range 2 {
		cmd := newEvalLearnCmd()
		var out bytes.Buffer
		cmd.SetOut(&out)
		cmd.SetErr(io.Discard)
		cmd.SetArgs([]string{"--commits", "60", "--seed", "3"})
		if err := cmd.Execute(); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"outcome, Brier score", "false kills of 1,000", "flaky steps, F1", "failures grouped right", "forks changed what is believed: false"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%q is not in\n%s", want, &out)
			}
		}
		if first != "" && first != out.String() {
			t.Errorf("the same history gave\n%s\nand\n%s", first, &out)
		}
		first = out.String()
	}
}
