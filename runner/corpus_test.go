package runner_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/runner"
	"github.com/terraphim/tgr/workflow"
)

// TestCorpus runs the jobs of real workflows that use nothing but scripts, each workflow in a virtual machine of its own,
// without a network and without its repository. Most of them fail, as they would have to; none may make us fail, hang, or
// claim a success that no step has had.
func TestCorpus(t *testing.T) {
	files, err := filepath.Glob("../../shared/suites/workflows/*.y*ml")
	if err != nil || len(files) == 0 {
		t.Skip("NOT TESTED: there are no real workflows in ../shared/suites/workflows")
	}
	if testing.Short() {
		t.Skip("restores virtual machines")
	}
	ran := 0
	ended := map[string]int{}
	for _, file := range files {
		plan := onlyScripts(t, file)
		if plan == nil {
			continue
		}
		ran++
		t.Run(filepath.Base(file), func(t *testing.T) {
			m := restoredMachine(t)
			for i := range plan.Jobs {
				res := corpusJob(t, m, plan, &plan.Jobs[i])
				ended[string(res.Conclusion)+" "+string(res.Blame)]++
			}
		})
	}
	t.Logf("%d workflows that use nothing but scripts; their jobs ended so: %v", ran, ended)
	if ran == 0 {
		t.Error("none of the workflows uses nothing but scripts")
	}
}

// onlyScripts compiles a workflow whose jobs have no steps but scripts; nil for any other.
func onlyScripts(t *testing.T, file string) *workflow.Plan {
	t.Helper()
	src, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	w, problems := workflow.Parse(".github/workflows/"+filepath.Base(file), src)
	if workflow.Failed(problems) || len(w.Events) == 0 {
		return nil
	}
	for _, j := range w.Jobs {
		if j.Uses != "" || len(j.Services) > 0 || j.Container != nil {
			return nil
		}
		for _, s := range j.Steps {
			if s.Uses != "" || s.Parallel != nil {
				return nil
			}
		}
	}
	p, problems := workflow.Compile(w, workflow.Options{Trigger: workflow.Trigger{Event: w.Events[0].Name}})
	if workflow.Failed(problems) {
		return nil // for want of inputs
	}
	return p
}

// corpusJob runs the first combination of a job, as if all that it needs had succeeded.
func corpusJob(t *testing.T, m runner.Machine, p *workflow.Plan, j *workflow.Job) runner.Result {
	t.Helper()
	s := inVM(t, newScenarioOn(t, txtar.Parse([]byte("-- workflow.yml --\non: push\njobs: {j: {runs-on: x, steps: [run: 'true']}}\n")), m), "corpus-"+j.Key)
	s.job.Plan, s.job.Job, s.job.Event = p, j, []byte("{}")
	for _, n := range j.Needs {
		s.job.Needs[n] = workflow.Need{Result: "success"}
	}
	in, err := j.Expand(p, &workflow.Scope{GitHub: s.job.GitHub, Needs: s.job.Needs})
	if err != nil || len(in) == 0 {
		t.Logf("job %s: %d combinations: %v", j.Key, len(in), err)
		return runner.Result{Conclusion: tgr.Skipped}
	}
	s.job.Instance = in[0]
	s.job.Instance.TimeoutMinutes, s.job.Instance.CancelTimeout = 0.25, 0.1
	res, err := runner.Run(context.WithoutCancel(s.ctx), s.config, s.job)
	if err != nil || res.Blame == tgr.BlameOurs || res.Conclusion == "" {
		t.Errorf("job %s: %s (%s) %s: %v", j.Key, res.Conclusion, res.Blame, res.Reason, err)
	}
	for _, st := range res.Steps {
		if !st.Status.Done() || st.Conclusion == "" {
			t.Errorf("job %s: step %s is %s", j.Key, st.Name, st.Status)
		}
		if res.Conclusion == tgr.Success && st.Conclusion == tgr.Failure {
			t.Errorf("job %s succeeded, and its step %s has failed", j.Key, st.Name)
		}
	}
	t.Logf("job %s: %s %s", j.Key, res.Conclusion, strings.SplitN(res.Reason, "\n", 2)[0])
	return res
}
